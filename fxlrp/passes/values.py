"""The forward values as the rules see them: themselves, their shapes, where they carry signal."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes.building import Builder
from fxlrp.passes.facts import KEY, Facts, facts, operation_of
from fxlrp.passes.positions import Positions
from fxlrp.passes.writer import Writer
from fxlrp.steps.batch_axis import BatchAxis
from fxlrp.steps.primitives import full
from fxlrp.vocabulary import Arguments, Kind


class Values:
    """What rules need to know of forward values, emitted where it is asked for.

    Args:
        graph: the graph that is being emitted, a copy of the forward graph in it.
        copies: from forward nodes to their copies.
        builder: records what is emitted.
        output: the forward node that is explained.
        mixed: whether values may be of several precisions: all are then read in the output's, at
            least float32.
        signs: whether rules are told which values have no negative element.
        outputs: whether they are given the forward values of the layers themselves.
        narrow: whether layers multiply in bfloat16 where their weights are.
    """

    def __init__(
        self, graph: fx.Graph, copies: dict[fx.Node, fx.Node], builder: Builder, output: fx.Node, *, mixed: bool,
        signs: bool = True, outputs: bool = True, narrow: bool = False,
    ) -> None:
        self.graph = graph
        self.copies = copies
        self.builder = builder
        self.output = output
        self.mixed = mixed
        self.signs = signs
        self.outputs = outputs
        self.narrow = narrow
        self.positions = Positions(self.value, self.arguments)
        self._promoted_nodes: dict[fx.Node, fx.Node] = {}
        self._shapes: dict[fx.Node, fx.Proxy] = {}
        self._supports: dict[fx.Node, Any] = {}

    def follow_batch(self, writer: Writer) -> None:
        """Let positions know the batch of the inputs."""
        positions, first = self.positions, facts(writer.inputs[0])
        positions.batch, positions.whole, positions.fixed = writer.batch_size(), first.batch is None, first.fixed

    def value(self, node: fx.Node) -> Any:
        """The forward value of a node, in the precision that relevance has."""
        return _Value(self._promoted(node) if self.mixed else self.copies[node], self)

    def stored(self, node: fx.Node) -> Any:
        """The value of a node in its own precision."""
        return _Value(self.copies[node], self)

    def _promoted(self, node: fx.Node) -> fx.Node:
        """A node in the precision of relevance; made where it is first asked for."""
        if node not in self._promoted_nodes:
            copy = self.copies[node]
            output = self.builder.proxy_of(self.copies[self.output])
            self._promoted_nodes[node] = full(self.builder.proxy_of(copy), output).node  # type: ignore[arg-type,attr-defined]
        return self._promoted_nodes[node]

    def shape(self, node: fx.Node) -> fx.Proxy:
        """The shape of a copied node, read where it is made: for its shape alone no value is kept."""
        if node not in self._shapes:
            with self.graph.inserting_after(node):
                read = self.graph.create_node("call_function", getattr, (node, "shape"), {}, f"{node.name}_shape")
            read.meta[KEY] = Facts(facts(node).origin)
            self._shapes[node] = self.builder.proxy_of(read)
        return self._shapes[node]

    def arguments(self, node: fx.Node) -> Arguments:
        """The arguments of a node's call, forward values as proxies."""
        values = operation_of(facts(node)).arguments(node.args, node.kwargs)
        return {name: self._mapped(value) for name, value in values.items()}

    def again(self, node: fx.Node, first: Any) -> Any:
        """A node's call once more, with another first argument."""
        args, kwargs = self._mapped(node.args[1:]), self._mapped(node.kwargs)
        return self.builder.create_proxy(node.op, node.target, (first, *args), kwargs)

    def call(self, node: fx.Node) -> tuple[Any, Any]:
        """Positional and keyword arguments of a node's call as they are written, forward values as proxies."""
        return self._mapped(node.args), self._mapped(node.kwargs)

    def _mapped(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: self.value(v) if isinstance(v, fx.Node) else v)

    def support(self, node: fx.Node) -> Any:
        """Ones where a value carries signal and zeros in padding; ``None``: signal everywhere."""
        if not facts(node).padded:
            return None
        if node not in self._supports:
            node_facts = facts(node)
            supports: list[Any] = [self.support(operand) for _, operand in node_facts.operands]
            if node_facts.kind is Kind.ROUTING:
                self._supports[node] = self._moved_support(node, node_facts)
            elif node_facts.kind is Kind.JOIN:
                self._supports[node] = torch.maximum(*supports)
            else:
                there = [support for support in supports if support is not None]
                found = there[0] if len(there) == 1 else there[0] * there[1]
                constants = [n for n in node.all_input_nodes if not facts(n).signal]
                # A constant of more axes, or longer ones, spreads a value that is one long.
                self._supports[node] = found.expand_as(self.value(node)) if constants and len(there) == 1 else found
        return self._supports[node]

    def _moved_support(self, node: fx.Node, node_facts: Facts) -> fx.Proxy:
        """A tensor of ones, moved as the values are: constants and padding come out as zeros."""
        if node.target is getitem:
            return self.support(node_facts.operands[0][1])[node.args[1]]
        names = operation_of(node_facts).operand_names()
        arguments = operation_of(node_facts).arguments(node.args, node.kwargs)
        written = [arguments[name] for name in names if isinstance(arguments[name], fx.Node)]

        def ones(n: fx.Node) -> Any:
            if not facts(n).signal:
                value = self.value(n)
                return torch.zeros_like(value) if _in_list(n, node) or n in written else value
            support = self.support(n)
            return torch.ones_like(self.value(n)) if support is None else support

        args: Any = fx.node.map_aggregate(node.args, lambda v: ones(v) if isinstance(v, fx.Node) else v)
        if operation_of(node_facts).pads:
            args = (*args[:2], 0.0)
        target: Any = node.target
        return target(*args)

    def where(self, node: fx.Node) -> tuple[BatchAxis, ...]:
        """Where the batch is in a node, as an optional last argument of a sum."""
        batch_axis = self.positions.batch_axis(node)
        return () if batch_axis is None else (batch_axis,)


class _Value(fx.Proxy):
    """A forward value; its shape is known from the forward pass on."""

    def __init__(self, node: fx.Node, values: Values) -> None:
        super().__init__(node, values.builder)
        self._values = values

    @property
    def shape(self) -> fx.Proxy:
        return self._values.shape(self.node)


def batch_positions(forward: fx.GraphModule) -> Positions:
    """Where the batch is in the values of a forward graph; what a run alone tells is a proxy of no graph in use."""
    writer = Writer(forward)
    values = Values(writer.graph, writer.copies, writer.builder, writer.inputs[0], mixed=False)
    values.follow_batch(writer)
    return values.positions


def _in_list(node: fx.Node, reader: fx.Node) -> bool:
    return bool(reader.args) and isinstance(reader.args[0], list | tuple) and node in reader.args[0]
