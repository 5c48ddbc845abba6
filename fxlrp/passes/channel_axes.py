"""Which axis of a value is that of its channels: the one that the layer that made it has them in."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import fx

from fxlrp.passes.facts import Facts, facts
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.channel_moves import counted_from_behind

Shapes = dict[fx.Node, Any]
"""The shape of every node that is a tensor; of a list, those of its entries."""


def channel_axes(graph: fx.Graph, shapes: Shapes) -> dict[fx.Node, int | None]:
    """The axis of the channels of every forward value that carries signal; ``None`` where it is not told."""
    axes: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        if node.op != "output" and facts(node).signal:
            axes[node] = _axis(node, facts(node), shapes, axes)
    return axes


def _axis(node: fx.Node, node_facts: Facts, shapes: Shapes, axes: dict[fx.Node, int | None]) -> int | None:
    if node.op == "placeholder":
        return None
    after = _first(shapes[node])
    source = node_facts.operands[0][1] if node_facts.operands else None  # a lookup has none that carries signal
    if node.target is getitem:
        assert source is not None
        return len(after) - 1 if facts(source).kind is Kind.RECURRENT else axes[source]
    assert node_facts.operation is not None
    move = node_facts.operation.channels
    if move is None and len(node_facts.operands) > 1:
        return _agreed(node, node_facts, shapes, axes)
    arguments = node_facts.operation.arguments(node.args, node.kwargs)
    axis, before = (None, ()) if source is None else (axes[source], _first(shapes[source]))
    return (move or counted_from_behind)(axis, arguments, before, after)


def _agreed(node: fx.Node, node_facts: Facts, shapes: Shapes, axes: dict[fx.Node, int | None]) -> int | None:
    """The axis that all operands have channels in, counted from behind, because an operand may be broadcast."""
    shape = _first(shapes[node])
    told = set()
    for _, operand in node_facts.operands:
        axis = axes[operand]
        if axis is not None:
            told.add(axis + len(shape) - len(_first(shapes[operand])))
    return told.pop() if len(told) == 1 else None


def _first(shape: Any) -> Sequence[int]:
    """The shape, or that of a list's first entry."""
    return shape[0] if isinstance(shape, list) else shape
