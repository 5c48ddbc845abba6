"""Emit: the relevance graph, in reverse, into a copy of the forward graph.

A value's relevance is the sum of what each of its readers hands it. A reader's rule is
called on proxies, which writes its steps into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx, nn

from fxlrp.errors import PatternError
from fxlrp.ledger import RowHead
from fxlrp.passes.building import Builder, target_name
from fxlrp.passes.facts import KEY, Emitted, Facts, facts
from fxlrp.rules.join import SplitRule
from fxlrp.rules.primitives import fit, item_sum
from fxlrp.rules.routing import outside
from fxlrp.rules.rule import CONSTANT, PADDING, Rule, Shares
from fxlrp.rules.start import NONNEGATIVE, Start, resolve_target, total
from fxlrp.vocabulary import Arguments, Kind

Relevance = Any
"""A proxy; for a value that is a list, pairs of an index and a proxy."""


@dataclass
class Program:
    """An emitted graph and what its outputs are.

    Its graph module maps ``(*inputs, target)`` to a dict: ``relevance`` (one an input),
    ``output``, ``target``, ``start``, ``checkpoints``, and ``ledger`` where one is kept.
    """

    module: fx.GraphModule
    rows: list[RowHead] = field(default_factory=list)


def emit(
    forward: fx.GraphModule, output: fx.Node, start: Start | nn.Module, checkpoints: tuple[str, ...] = (), *,
    ledger: bool = False,
) -> Program:
    """Write the relevance of ``output`` back to the inputs.

    Args:
        forward: the forward graph, rules assigned.
        output: the node where relevance starts.
        start: ``(output, target) -> relevance``; a module is called as one.
        checkpoints: names of modules at whose input relevance is wanted.
        ledger: also compute what each node received, handed on and absorbed.

    Raises:
        PatternError: a checkpoint is no module that the graph passes through.
    """
    return _Emitter(forward, ledger=ledger).run(output, start, checkpoints)


class _Emitter:
    def __init__(self, forward: fx.GraphModule, *, ledger: bool) -> None:
        self.forward = forward
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.structure = self.graph.graph_copy(forward.graph, self.copies)
        self.builder = Builder(self.graph)
        self.received: dict[fx.Node, Relevance] = {}
        self.signed: set[fx.Node] = set()  # values whose relevance may be negative
        self.flows: dict[tuple[fx.Node, fx.Node], fx.Proxy] = {}
        self.shapes: dict[fx.Node, fx.Proxy] = {}
        self.supports: dict[fx.Node, Any] = {}
        self.keeps_ledger = ledger
        self.rows: list[RowHead] = []
        self.amounts: list[list[fx.Proxy]] = []

    def run(self, output: fx.Node, start: Start | nn.Module, checkpoints: tuple[str, ...]) -> Program:
        inputs = [node for node in self.forward.graph.nodes if node.op == "placeholder"]
        target = self._target_placeholder(inputs)
        self._scope(output, "start", role="start")
        value = self.value(output)
        wanted = resolve_target(value, target)
        modules: dict[str, Any] = {}
        if isinstance(start, nn.Module):
            modules["start"] = start
            beginning: Any = self.builder.create_proxy("call_module", "start", (value, wanted), {})
        else:
            beginning = start(value, wanted)
        self._hand(output, None, beginning)
        if start not in NONNEGATIVE:
            self.signed.add(output)
        for node in reversed(self.forward.graph.nodes):
            if node in self.received and node.op == "call_function":
                self._propagate(node, facts(node))
        self._scope(output, "start", role="result")
        results: dict[str, Any] = {
            # An input that only opens a gate, or is not used at all, receives nothing.
            "relevance": [self.received.get(node, torch.zeros_like(self.value(node))) for node in inputs],
            "output": self.structure,
            "target": wanted,
            "start": total(beginning),
            "checkpoints": {name: self._checkpoint(name) for name in checkpoints},
        }
        if self.keeps_ledger:
            results["ledger"] = self.amounts
        self.graph.output(fx.node.map_aggregate(results, lambda v: v.node if isinstance(v, fx.Proxy) else v))
        return Program(self._assemble(modules), self.rows)

    # The rules, kind by kind ---------------------------------------------------------------

    def _propagate(self, node: fx.Node, known: Facts) -> None:
        relevance = self.received[node]
        self._scope(node, type(known.rule).__name__ if known.rule else str(known.kind))
        if node in self.signed or not (known.rule is None or known.rule.keeps_sign):
            self.signed.update(operand for _, operand in known.operands)
        if node.target is getitem:
            self._hand_item(node, relevance)
            return
        shares: Shares = _PROPAGATE[known.kind](self, node, known, relevance)
        for (_, operand), share in zip(known.operands, shares.operands, strict=True):
            if share is not None:
                self._hand(operand, node, share)
        if self.keeps_ledger:
            self._record(node, known, relevance, shares)

    def _linear(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        ((name, operand),) = known.operands
        operation, weight, bias = operation_of(known).bind(self.arguments(node), name)
        return rule_of(known)(
            operation, self.value(operand), weight, bias, relevance,
            nonnegative=facts(operand).nonnegative, support=self.support(operand), filled=facts(operand).filled,
            signed=node in self.signed,
        )

    def _selection(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        ((name, operand),) = known.operands
        pool = operation_of(known).bind(self.arguments(node), name)
        if isinstance(relevance, list):  # adaptive max pooling returns its indices as well
            relevance = _added([part for _, part in relevance])
        return rule_of(known)(
            pool, self.value(operand), relevance,
            nonnegative=facts(operand).nonnegative, support=self.support(operand), filled=facts(operand).filled,
            signed=node in self.signed,
        )

    def _join(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        operands = [operand for _, operand in known.operands]
        skip = next(i for i, operand in enumerate(operands) if operand.name == known.join.skip)
        order = (operands[skip], operands[1 - skip])
        rule, supports = rule_of(known), {}
        if isinstance(rule, SplitRule) and rule.needs_support:
            supports = dict(zip(("skip_support", "residual_support"), map(self.support, order), strict=True))
        shares = rule(relevance, *map(self.value, order), **supports)
        fitted = [s if s is None else fit(s, self.value(o).shape) for s, o in zip(shares.operands, order, strict=True)]
        shares.operands = fitted if skip == 0 else fitted[::-1]
        return shares

    def _gate(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        shares = rule_of(known)(relevance, gate=known.gate)
        shares.operands = [
            share if share is None else fit(share, self.value(operand).shape)
            for share, (_, operand) in zip(shares.operands, known.operands, strict=True)
        ]
        return shares

    def _pass(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        shares = rule_of(known)(relevance)
        ((_, operand),) = known.operands
        if known.kind is Kind.POINTWISE and len(node.all_input_nodes) > 1:
            # A constant may have broadcast the signal.
            shares.operands = [s if s is None else fit(s, self.value(operand).shape) for s in shares.operands]
        return shares

    def _routing(self, node: fx.Node, known: Facts, relevance: Relevance) -> Shares:
        operation = operation_of(known)
        arguments = self.arguments(node)
        arguments["output"] = self.value(node)
        moved = operation.transpose(relevance, arguments)
        if operation.operand_names() != ("tensors",):
            shares = Shares([moved])
            if operation.pads:
                shares.absorbed[PADDING] = lambda: item_sum(outside(relevance, arguments["pad"]))
            return shares
        entries: Any = node.args[0]
        pieces = [(facts(entry).signal, moved[i]) for i, entry in enumerate(entries)]
        shares = Shares([piece for signal, piece in pieces if signal])
        constants = [piece for signal, piece in pieces if not signal]
        if constants:
            shares.absorbed[CONSTANT] = lambda: _added([item_sum(piece) for piece in constants])
        return shares

    # What rules need to know ----------------------------------------------------------------

    def value(self, node: fx.Node) -> Any:
        """The forward value of a node."""
        return _Value(self.copies[node], self)

    def shape(self, node: fx.Node) -> fx.Proxy:
        """The shape of a copied node, read where it is made: for its shape alone no value is kept."""
        if node not in self.shapes:
            with self.graph.inserting_after(node):
                read = self.graph.create_node("call_function", getattr, (node, "shape"), {}, f"{node.name}_shape")
            read.meta[KEY] = Facts(facts(node).origin)
            self.shapes[node] = self.builder.proxy_of(read)
        return self.shapes[node]

    def arguments(self, node: fx.Node) -> Arguments:
        """The arguments of a node's call, forward values as proxies."""
        values = operation_of(facts(node)).arguments(node.args, node.kwargs)
        return {name: self._mapped(value) for name, value in values.items()}

    def _mapped(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: self.value(v) if isinstance(v, fx.Node) else v)

    def support(self, node: fx.Node) -> Any:
        """Ones where a value carries signal and zeros in padding; ``None``: signal everywhere."""
        if not facts(node).padded:
            return None
        if node not in self.supports:
            known = facts(node)
            parts: list[Any] = [self.support(operand) for _, operand in known.operands]
            if known.kind is Kind.ROUTING:
                self.supports[node] = self._moved_support(node, known)
            elif known.kind is Kind.JOIN:
                self.supports[node] = torch.maximum(*parts)
            else:
                there = [part for part in parts if part is not None]
                self.supports[node] = there[0] if len(there) == 1 else there[0] * there[1]
        return self.supports[node]

    def _moved_support(self, node: fx.Node, known: Facts) -> fx.Proxy:
        """A tensor of ones, moved as the values are: constants and padding come out as zeros."""

        def ones(n: fx.Node) -> Any:
            if facts(n).kind is Kind.CONSTANT:
                value = self.value(n)
                return torch.zeros_like(value) if _in_list(n, node) else value
            support = self.support(n)
            return torch.ones_like(self.value(n)) if support is None else support

        args: Any = fx.node.map_aggregate(node.args, lambda v: ones(v) if isinstance(v, fx.Node) else v)
        if operation_of(known).pads:
            args = (*args[:2], 0.0)
        target: Any = node.target
        return target(*args)

    # Bookkeeping ----------------------------------------------------------------------------

    def _hand(self, operand: fx.Node, reader: fx.Node | None, share: Any) -> None:
        if reader is not None:
            before = self.flows.get((operand, reader))
            self.flows[operand, reader] = share if before is None else before + share
        alone = sum(facts(user).signal for user in operand.users) < 2
        name = operand.name if alone or reader is None else f"{operand.name}_from_{reader.name}"
        self._name_relevance(share, operand.name, name)
        if operand in self.received:
            share = self.received[operand] + share
            self._name_relevance(share, operand.name, operand.name)
        self.received[operand] = share

    def _name_relevance(self, share: fx.Proxy, value: str, name: str) -> None:
        emitted = share.node.meta[KEY]
        if emitted.role != "relevance" and emitted.node == self.scope:  # what merely passes keeps its name
            emitted.role, emitted.value = "relevance", value
            share.node._rename(f"relevance_{name}")

    def _hand_item(self, node: fx.Node, relevance: fx.Proxy) -> None:
        source, index = node.all_input_nodes[0], node.args[1]
        self.received.setdefault(source, []).append((index, relevance))
        self.flows[source, node] = relevance

    def _record(self, node: fx.Node, known: Facts, relevance: Relevance, shares: Shares) -> None:
        parts = [part for _, part in relevance] if isinstance(relevance, list) else [relevance]
        received = _added([item_sum(part) for part in parts])
        handed = _added([item_sum(share) for share in shares.operands if share is not None])
        row = [received, handed, shares.rescaled() if shares.rescaled else torch.zeros_like(received)]
        row.extend(amount() for amount in shares.absorbed.values())
        self.amounts.append(row)
        path = known.origin.path
        rule = repr(known.rule) if known.rule else ""
        self.rows.append(RowHead(node.name, path, str(known.kind), rule, tuple(shares.absorbed)))

    def _checkpoint(self, name: str) -> Any:
        """The relevance that the nodes of a module hand to values from outside."""
        found: dict[fx.Node, Any] = {}
        inside = {n for n in self.forward.graph.nodes if _within(facts(n).origin.modules, name)}
        for (operand, reader), share in self.flows.items():
            if reader in inside and operand not in inside:
                found[operand] = found[operand] + share if operand in found else share
        if not found:
            raise PatternError(
                f"checkpoint {name!r} is no module of this model that relevance passes through; "
                "dropout and identities leave no trace in the graph"
            )
        return next(iter(found.values())) if len(found) == 1 else tuple(found.values())

    def _target_placeholder(self, inputs: list[fx.Node]) -> Any:
        with self.graph.inserting_after(self.copies[inputs[-1]]):
            node = self.graph.placeholder("target", default_value=None)
        node.meta[KEY] = Facts(facts(inputs[-1]).origin)
        return self.builder.proxy_of(node)

    def _scope(self, node: fx.Node, rule: str, role: str = "step") -> None:
        """Let what is emitted next belong to ``node``."""
        self.scope = node.name

        def label(new: fx.Node) -> None:
            new.meta[KEY] = Emitted(node.name, rule, role)

        self.builder.label = label
        self.builder.name = lambda target: f"{node.name}_{target_name(target)}"

    def _assemble(self, modules: dict[str, Any]) -> fx.GraphModule:
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.graph.lint()
        tensors: dict[str, Any] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr":
                value: Any = self.forward
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                tensors[str(node.target)] = value
        return fx.GraphModule({**tensors, **modules}, self.graph, class_name="Relevance")


class _Value(fx.Proxy):
    """A forward value; its shape is known from the forward pass on."""

    def __init__(self, node: fx.Node, emitter: _Emitter) -> None:
        super().__init__(node, emitter.builder)
        self._emitter = emitter

    @property
    def shape(self) -> fx.Proxy:
        return self._emitter.shape(self.node)


_PROPAGATE: dict[Kind, Callable[..., Shares]] = {
    Kind.LINEAR: _Emitter._linear,
    Kind.SELECTION: _Emitter._selection,
    Kind.JOIN: _Emitter._join,
    Kind.GATE: _Emitter._gate,
    Kind.POINTWISE: _Emitter._pass,
    Kind.NORMALISATION: _Emitter._pass,
    Kind.ROUTING: _Emitter._routing,
}


def operation_of(known: Facts) -> Any:
    """The vocabulary's entry; what carries signal has one."""
    assert known.operation is not None
    return known.operation


def rule_of(known: Facts) -> Rule:
    """The rule that was assigned."""
    assert known.rule is not None
    return known.rule


def _within(modules: Any, name: str) -> bool:
    return any(path == name for path, _ in modules)


def _in_list(node: fx.Node, reader: fx.Node) -> bool:
    return bool(reader.args) and isinstance(reader.args[0], list | tuple) and node in reader.args[0]


def _added(amounts: list[Any]) -> Any:
    total = amounts[0]
    for amount in amounts[1:]:
        total = total + amount
    return total
