"""Relevance on its way back through the graph: who received it, and who handed it to whom."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.facts import KEY, facts
from fxlrp.passes.writer import Writer

Relevance = Any
"""A proxy; for a value that is a list, pairs of an index and a proxy."""


class Flows:
    """What has been handed on so far.

    Args:
        writer: writes the graph.

    Attributes:
        received: by forward node, the sum of what its readers handed it.
        handed: by operand and reader, what the reader handed to the operand.
        negative: the nodes whose relevance may be negative.
        beginning: the relevance that entered.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.received: dict[fx.Node, Relevance] = {}
        self.handed: dict[tuple[fx.Node, fx.Node], Any] = {}
        self.negative: set[fx.Node] = set()
        self.beginning: Any = None

    def begin(self, output: fx.Node, relevance: Any, *, negative: bool) -> None:
        """Let relevance enter at ``output``."""
        self.beginning = relevance
        self._add(output, relevance, output.name)
        if negative:
            self.negative.add(output)

    def hand(self, operand: fx.Node, reader: fx.Node, share: Any) -> None:
        """Hand a share of the reader's relevance to one of its operands."""
        before = self.handed.get((operand, reader))
        self.handed[operand, reader] = share if before is None else before + share
        alone = sum(facts(user).signal for user in operand.users) < 2
        self._add(operand, share, operand.name if alone else f"{operand.name}_from_{reader.name}")

    def hand_entry(self, entry: fx.Node) -> None:
        """Hand all relevance of an entry of a list to the list."""
        source, index = entry.all_input_nodes[0], entry.args[1]
        self.received.setdefault(source, []).append((index, self.received[entry]))
        self.handed[source, entry] = self.received[entry]

    def replace(self, node: fx.Node, relevance: Any) -> None:
        """Put other relevance in the place of what a node received."""
        self.received[node] = relevance
        self._name(relevance, node.name, node.name)

    def handed_to(self, node: fx.Node) -> dict[fx.Node, Any]:
        """What each reader handed to ``node``."""
        return {reader: share for (operand, reader), share in self.handed.items() if operand is node}

    def _add(self, operand: fx.Node, share: Any, name: str) -> None:
        self._name(share, operand.name, name)
        if operand in self.received:
            share = self.received[operand] + share
            self._name(share, operand.name, operand.name)
        self.received[operand] = share

    def _name(self, share: fx.Proxy, value: str, name: str) -> None:
        emitted = share.node.meta[KEY]
        if emitted.role != "relevance" and emitted.node == self.writer.scope_name:  # what merely passes keeps its name
            emitted.role, emitted.value = "relevance", value
            share.node._rename(f"relevance_{name}")
