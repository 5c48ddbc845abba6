"""Pieces: values that are one entry of another value along an axis, and what several of them in order are.

Values here have three axes, as what recurrent layers take: (batch, steps, features), in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.vocabulary import VOCABULARY, Arguments, Kind

aten = torch.ops.aten

RANK = 3

Move = tuple[Any, tuple[Any, ...]]
"""What moves a value: an operation, and its arguments behind the value."""


@dataclass(frozen=True)
class Piece:
    """One entry of a value.

    Attributes:
        source: the value.
        axis: along which axis it is one entry.
        place: which one, counted from the front.
        at: where this axis is in the piece, one long; ``None``: it is gone.
    """

    source: fx.Node
    axis: int
    place: int
    at: int | None = None


@dataclass(frozen=True)
class Run:
    """Entries of a value one behind the other.

    Attributes:
        source, axis: as of a piece.
        start, length, step: which ones: ``length`` from ``start`` on, every ``step``-th.
        backwards: whether the last one is the first.
    """

    source: fx.Node
    axis: int
    start: int
    length: int
    step: int
    backwards: bool


Known = Mapping[fx.Node, Piece]
"""Nodes that are pieces though their own calls do not tell."""


def piece_of(node: fx.Node, known: Known) -> Piece | None:
    """What a node is a piece of; ``None``: of nothing."""
    if node in known:
        return known[node]
    if node.target is getitem:
        return _of_parts(*node.args)
    if node.target is aten.reshape.default:
        return _reshaped(node, known)
    read = _READ.get(node.target)
    return None if read is None else read(arguments_of(node), known)


def arguments_of(node: fx.Node) -> Arguments:
    """The arguments of a call by name, however they were given."""
    operation = VOCABULARY.canonical(node.target)
    assert operation is not None
    return operation.arguments(node.args, node.kwargs)


def _of_parts(parts: Any, place: Any) -> Piece | None:
    """Of what ``unbind`` and ``split`` give."""
    takes_apart = parts.target in (aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default)
    if not takes_apart or not isinstance(place, int) or place < 0:
        return None
    a = arguments_of(parts)
    axis = a["dim"] % RANK
    if parts.target is aten.unbind.int:
        return Piece(a["self"], axis, place)
    sizes = a["split_sizes"] if "split_sizes" in a else [a["split_size"]]
    return Piece(a["self"], axis, place, at=axis) if all(size == 1 for size in sizes) else None


def _selected(a: Arguments, known: Known) -> Piece | None:
    axis, inner = a["dim"] % RANK, piece_of(a["self"], known)
    if inner is not None and inner.at == axis and a["index"] in (0, -1):
        return replace(inner, at=None)
    place = _counted(a["self"], axis, a["index"])
    return None if place is None else Piece(a["self"], axis, place)


def _sliced(a: Arguments, known: Known) -> Piece | None:
    axis = a["dim"] % RANK
    place = _counted(a["self"], axis, a["start"] or 0)
    end = size_of(a["self"], axis) if a["end"] is None else _counted(a["self"], axis, a["end"])
    return Piece(a["self"], axis, place, at=axis) if place is not None and (end, a["step"]) == (place + 1, 1) else None


def _narrowed(a: Arguments, known: Known) -> Piece | None:
    axis = a["dim"] % RANK
    place = _counted(a["self"], axis, a["start"])
    return Piece(a["self"], axis, place, at=axis) if place is not None and a["length"] == 1 else None


def _counted(source: fx.Node, axis: int, place: Any) -> int | None:
    """A place counted from the front, as far as that is known."""
    if not isinstance(place, int):
        return None
    size = size_of(source, axis)
    return place if place >= 0 else None if size is None else place + size


def size_of(source: fx.Node, axis: int) -> int | None:
    """How long an axis is, as far as that is known."""
    shape = facts(source).shape
    return None if shape is None or len(shape) != RANK else shape[axis]


def _unsqueezed(a: Arguments, known: Known) -> Piece | None:
    inner = piece_of(a["self"], known)
    return replace(inner, at=a["dim"] % RANK) if inner is not None and inner.at is None else None


def _squeezed(a: Arguments, known: Known) -> Piece | None:
    inner = piece_of(a["self"], known)
    gone = inner is not None and inner.at is not None and [dim % RANK for dim in a["dim"]] == [inner.at]
    return replace(inner, at=None) if inner is not None and gone else None


def _flattened(a: Arguments, known: Known) -> Piece | None:
    """Two axes become one, of which one is one long."""
    inner, axes = piece_of(a["self"], known), (a["start_dim"] % RANK, a["end_dim"] % RANK)
    gone = inner is not None and inner.at in axes and axes[1] - axes[0] == 1
    return replace(inner, at=None) if inner is not None and gone else None


def _reshaped(node: fx.Node, known: Known) -> Piece | None:
    """What is left has two axes, of which the last one is as long as that of the source is."""
    inner, shape = piece_of(arguments_of(node)["self"], known), facts(node).shape
    if inner is None or shape is None or len(shape) != RANK - 1 or shape[-1] is None:
        return None
    last = size_of(inner.source, RANK - 1 if inner.axis != RANK - 1 else RANK - 2)
    return replace(inner, at=None) if shape[-1] == last else None


_READ: dict[Any, Callable[[Arguments, Known], Piece | None]] = {
    aten.select.int: _selected, aten.slice.Tensor: _sliced, aten.narrow.default: _narrowed,
    aten.unsqueeze.default: _unsqueezed, aten.squeeze.dims: _squeezed, aten.flatten.using_ints: _flattened,
}  # fmt: skip


def run_of(pieces: Sequence[Piece | None], numbers: Mapping[fx.Node, int]) -> Run | None:
    """What pieces of one value are, one behind the other; ``None``: they are not.

    Args:
        pieces: two at least.
        numbers: the values of the graph, as :func:`value_numbers` tells them apart.
    """
    first, second = pieces[:2]
    if first is None or second is None:
        return None
    step = second.place - first.place
    for i, piece in enumerate(pieces):
        if piece is None or numbers[piece.source] != numbers[first.source]:
            return None
        if replace(piece, source=first.source) != replace(first, place=first.place + step * i):
            return None
    start = min(first.place, first.place + step * (len(pieces) - 1))
    return Run(first.source, first.axis, start, len(pieces), abs(step), step < 0) if step else None


def moves_to(run: Run, at: int) -> list[Move]:
    """What makes a run of its source, with the axis of its pieces at ``at``."""
    moves: list[Move] = []
    span = (run.length - 1) * run.step + 1
    if size_of(run.source, run.axis) != span:  # narrow, unlike a slice, fails where there are fewer entries
        moves.append((aten.narrow.default, (run.axis, run.start, span)))
    if run.step > 1:
        moves.append((aten.slice.Tensor, (run.axis, 0, span, run.step)))
    if run.backwards:
        moves.append((aten.flip.default, ([run.axis],)))
    if run.axis != at:
        dims = [axis for axis in range(RANK) if axis != run.axis]
        dims.insert(at, run.axis)
        moves.append((aten.permute.default, (dims,)))
    return moves


def value_numbers(graph: fx.Graph) -> dict[fx.Node, int]:
    """A number for each node, the same for nodes that move the same, or compute it without signal.

    Two layers that compute the same are two: what one of them is short of, its rule takes from its own relevance alone.
    """
    by_call: dict[Any, int] = {}
    numbers: dict[fx.Node, int] = {}
    for node in graph.nodes:
        key: Any = node
        alike = node.op != "output" and (facts(node).kind is Kind.ROUTING or not facts(node).signal)
        if alike and (isinstance(node.target, torch._ops.OpOverload) or node.target is getitem):
            key = node.target, repr(fx.node.map_arg((node.args, node.kwargs), lambda source: f"%{numbers[source]}"))
        numbers[node] = by_call.setdefault(key, len(by_call))
    return numbers
