"""Emit: the relevance graph, in reverse, into a copy of the forward graph.

A value's relevance is the sum of what each of its readers hands it. A reader's rule is
called on proxies, which writes its steps into the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx, nn

from fxlrp.common.errors import PatternError
from fxlrp.common.tensors import tensor_at, tensor_names
from fxlrp.passes.building import Builder, identifier, target_name
from fxlrp.passes.conditions import Point, calls_of, check_modules, check_points, write_parts
from fxlrp.passes.facts import KEY, Emitted, Facts, facts
from fxlrp.passes.positions import STATES
from fxlrp.passes.propagate import Relevance, propagate
from fxlrp.passes.values import Values
from fxlrp.results.ledger import RowHead
from fxlrp.rules.rule import CONDITION, Shares
from fxlrp.rules.starts import NONNEGATIVE, RowsOfStarts, Start, resolve_target
from fxlrp.steps.batch_axis import BatchAxis, Position, conditioned, item_sum, one_row, total
from fxlrp.steps.primitives import channel_sum
from fxlrp.vocabulary import Kind


@dataclass
class Program:
    """An emitted graph and what its outputs are.

    Its graph module maps ``(*inputs, target)`` to a dict: ``relevance`` (one an input),
    ``output``, ``target``, ``start``, ``checkpoints``, and ``ledger`` where one is kept. Of a
    program for rows the arguments are ``(*inputs, targets, row)``: targets are (rows, batch),
    and explained is that of number ``row``. Mapped over ``row`` by ``torch.vmap``, all that
    does not depend on it is computed once. Of a program with conditions a mask follows for
    each of its ``points``.
    """

    module: fx.GraphModule
    rows: list[RowHead] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


def emit(
    forward: fx.GraphModule, output: fx.Node, start: Start | nn.Module, checkpoints: tuple[str, ...] = (), *,
    ledger: bool = False, mixed: bool = False, rows: bool = False,
    conditions: tuple[str, ...] = (), heatmap: bool = False, nodes: tuple[str, ...] = (), signs: bool = True,
    outputs: bool = True,
) -> Program:  # fmt: skip
    """Write the relevance of ``output`` back to the inputs.

    Args:
        forward: the forward graph, rules assigned.
        output: the node where relevance starts.
        start: ``(output, target) -> relevance``; a module is called as one.
        checkpoints: names of modules at whose input relevance is wanted.
        ledger: also compute what each node received, handed on and absorbed.
        mixed: forward values may be of several precisions or of half; relevance is computed in that
            of the output, but at least in float32.
        rows: whether the target is one of many, see :class:`Program`.
        conditions: names of modules at whose output relevance is masked.
        heatmap: return relevance summed over its channels.
        nodes: names of forward nodes whose relevance is wanted.
        signs: tell rules which values have no negative element.
        outputs: give rules the forward values of the layers themselves.

    Raises:
        PatternError: a checkpoint or a condition is no module that the graph passes through, or no relevance
            reaches a node that is wanted.
        RuleError: a rule does with relevance what conditions do not understand.
    """
    values: dict[str, bool] = {"mixed": mixed, "signs": signs, "outputs": outputs}
    emitter = _Emitter(forward, output, ledger=ledger, rows=rows, conditions=conditions, values=values)
    return emitter.run(start, checkpoints, heatmap, nodes)


class _Emitter:
    def __init__(
        self, forward: fx.GraphModule, output: fx.Node, *, ledger: bool, rows: bool, conditions: tuple[str, ...],
        values: dict[str, bool],
    ) -> None:
        check_modules(forward.graph, conditions)
        self.conditions = [(name, calls_of(forward.graph, name)) for name in conditions]
        self.points: list[Point] = []
        self.forward = forward
        self.output = output
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.outputs: Any = self.graph.graph_copy(forward.graph, self.copies)
        self.builder = Builder(self.graph)
        self.received: dict[fx.Node, Relevance] = {}
        self.signed: set[fx.Node] = set()  # values whose relevance may be negative
        self.flows: dict[tuple[fx.Node, fx.Node], fx.Proxy] = {}
        self.values = Values(self.graph, self.copies, self.builder, output, **values)
        self.keeps_ledger = ledger
        self.many = rows
        self.rows: list[RowHead] = []
        self.amounts: list[list[Any]] = []  # a row: received, to each operand, rescaled, kept by each reason

    def run(
        self, start: Start | nn.Module, checkpoints: tuple[str, ...], heatmap: bool, nodes: tuple[str, ...]
    ) -> Program:
        output = self.output
        inputs = [node for node in self.forward.graph.nodes if node.op == "placeholder"]
        target = self._placeholder("target", self.copies[inputs[-1]])
        row = self._placeholder("row", target.node) if self.many else None
        self.last_argument = (target if row is None else row).node
        self.values.positions.batch = self._batch(self.copies[inputs[0]], self.last_argument)
        self._scope(output, "start", role="start")
        modules: dict[str, Any] = {}
        beginning, wanted = self._start(start, target, row, modules)
        self.beginning = beginning
        self._hand(output, None, beginning)
        if start not in NONNEGATIVE:
            self.signed.add(output)
        for node in reversed(self.forward.graph.nodes):
            if node not in self.received:
                continue
            self._condition(node)
            if facts(node).kind is not Kind.INPUT:
                self._propagate(node, facts(node))
        for name, calls in self.conditions:
            check_points(name, calls, self.points)
        self._scope(output, "start", role="result")
        results: dict[str, Any] = {
            "relevance": [channel_sum(found) if heatmap else found for found in map(self._arrived, inputs)],
            "output": list(self.outputs[1:]),
            "target": wanted,
            "start": total(beginning, *self.values.where(output)),
            "checkpoints": {name: self._checkpoint(name) for name in checkpoints},
        }
        if nodes:
            results["nodes"] = {name: self._relevance_of(name) for name in nodes}
        if self.keeps_ledger:
            results["ledger"] = self.amounts
        self.graph.output(fx.node.map_aggregate(results, lambda v: v.node if isinstance(v, fx.Proxy) else v))
        if self.conditions:
            write_parts(self.graph, beginning.node)
        return Program(self._assemble(modules), self.rows, self.points)

    def _start(self, start: Start | nn.Module, target: Any, row: Any, modules: dict[str, Any]) -> tuple[Any, Any]:
        """The relevance that enters, and the class that it is of; a start that is a module is added to ``modules``."""
        value = self.values.value(self.output)
        if row is not None:
            modules["start"] = RowsOfStarts(start)
            starts: Any = self.builder.create_proxy("call_module", "start", (value, target), {})
            return one_row(starts, row), one_row(target, row)
        wanted = resolve_target(value, target)
        if isinstance(start, nn.Module):
            modules["start"] = start
            return self.builder.create_proxy("call_module", "start", (value, wanted), {}), wanted
        return start(value, wanted), wanted

    def _arrived(self, node: fx.Node) -> Any:
        """The relevance of an input; for integers that of their lookups, features side by side."""
        if not facts(node).integer:
            # An input that only opens a gate, or is not used at all, receives nothing.
            return self.received.get(node, torch.zeros_like(self.values.value(node)))
        lookups = [n for n in self.forward.graph.nodes if n.op != "output" and facts(n).source is node]
        found = [self.received[lookup] for lookup in lookups if lookup in self.received]
        if not found:
            return torch.zeros_like(self.values.value(node), dtype=torch.float32)
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _relevance_of(self, name: str) -> Any:
        """The relevance of the forward node of this name."""
        found = next((value for node, value in self.received.items() if node.name == name), None)
        if found is None or isinstance(found, list):
            raise PatternError(f"node {name!r}: no relevance reaches a node of this name, or it is a list")
        return found

    # The rules, kind by kind ---------------------------------------------------------------

    def _propagate(self, node: fx.Node, known: Facts) -> None:
        relevance = self.received[node]
        self._scope(node, type(known.rule).__name__ if known.rule else str(known.kind))
        if node in self.signed or not (known.rule is None or known.rule.keeps_sign):
            self.signed.update(operand for _, operand in known.operands)
        if node.target is getitem:
            self._hand_item(node, relevance)
            return
        shares = propagate(self.values, node, relevance, signed=node in self.signed)
        for (_, operand), share in zip(known.operands, shares.operands, strict=True):
            if share is not None:
                self._hand(operand, node, share)
        if self.keeps_ledger:
            self._record(node, known, relevance, shares)

    def _condition(self, node: fx.Node) -> None:
        """Mask what readers outside of a conditioned module hand to its output ``node``."""
        around = [(name, inside) for name, calls in self.conditions for inside in calls if node in inside]
        if not around or isinstance(self.received[node], list):
            return
        masked = len(self.points)
        parts: dict[Any, Any] = {reader: share for (value, reader), share in self.flows.items() if value is node}
        if node is self.output:
            parts[None] = self.beginning
        for name, inside in sorted(around, key=lambda module: -len(module[1])):  # from the outermost in
            outside = [reader for reader in parts if reader not in inside]
            if not outside:
                continue
            self._scope(node, "Condition")
            position = self.values.positions.of(node)
            known = position is None or isinstance(position, Position)
            mask = self._placeholder(f"mask{len(self.points)}_{identifier(name)}", self.last_argument)
            self.last_argument = mask.node
            before: Any = _added([parts.pop(reader) for reader in outside])
            kept: Any = conditioned(before, mask, *([] if position is None else [position]))
            parts[outside[0]] = kept
            self.points.append(Point(name, node, position if known else None, known))
            if self.keeps_ledger:
                at = self.values.where(node)
                sums: list[Any] = [item_sum(amount, *at) for amount in (before, kept, before - kept)]
                nothing: Any = torch.zeros_like(sums[0])
                self.amounts.append([sums[0], [sums[1]], nothing, sums[2]])
                self.rows.append(RowHead(node.name, name, CONDITION, "", (CONDITION,), (node.name,)))
        if len(self.points) == masked:
            return
        self.received[node] = _added(list(parts.values()))
        self._name_relevance(self.received[node], node.name, node.name)

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
        here = self.values.where(node)
        places = self._places(known, relevance, here)
        received = _added([item_sum(part, *at) for part, at in zip(parts, places, strict=True)])
        handed: dict[str, Any] = {}
        for (_, operand), share in zip(known.operands, shares.operands, strict=True):
            if share is not None:
                amount = item_sum(share, *self.values.where(operand))
                handed[operand.name] = handed[operand.name] + amount if operand.name in handed else amount
        row: list[Any] = [received, list(handed.values())]
        for kind in (shares.rescaled, *shares.absorbed.values()):
            kept: Any = [] if kind is None else kind()
            parts = kept if isinstance(kept, list) else [kept]
            row.append(_added([item_sum(part, *here) for part in parts]) if parts else torch.zeros_like(received))
        reasons = list(shares.absorbed)
        if shares.rest is not None:
            row.append(_added([received, *(-amount for amount in (*handed.values(), *row[3:]))]))
            reasons.append(shares.rest)
        self.amounts.append(row)
        path = known.origin.path
        rule = repr(known.rule) if known.rule else ""
        self.rows.append(RowHead(node.name, path, str(known.kind), rule, tuple(reasons), tuple(handed)))

    def _places(self, known: Facts, relevance: Relevance, here: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Where the batch is in each part of a node's relevance."""
        if not isinstance(relevance, list):
            return [here]
        states = (BatchAxis(*STATES, self.values.positions.batch),)
        return [states if known.kind is Kind.RECURRENT and index else here for index, _ in relevance]

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

    def _placeholder(self, name: str, before: fx.Node) -> Any:
        """One more argument of the program, behind the node ``before``."""
        with self.graph.inserting_after(before):
            node = self.graph.placeholder(name, default_value=None)
        node.meta[KEY] = Facts(facts(before).origin)
        return self.builder.proxy_of(node)

    def _batch(self, first: fx.Node, last: fx.Node) -> fx.Proxy:
        """How many items there are, read off ``first`` behind the ``last`` argument; emitted where it is asked for."""
        with self.graph.inserting_after(last):
            shape = self.graph.create_node("call_function", getattr, (first, "shape"), {}, "input_shape")
        with self.graph.inserting_after(shape):
            batch = self.graph.create_node("call_function", getitem, (shape, 0), {}, "batch")
        for node in (shape, batch):
            node.meta[KEY] = Facts(facts(last).origin)
        return self.builder.proxy_of(batch)

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
        tensors = {name: tensor_at(self.forward, name) for name in tensor_names(self.graph)}
        return fx.GraphModule({**tensors, **modules}, self.graph, class_name="Relevance")


def _within(modules: Any, name: str) -> bool:
    return any(path == name for path, _ in modules)


def _added(amounts: list[Any]) -> Any:
    total = amounts[0]
    for amount in amounts[1:]:
        total = total + amount
    return total
