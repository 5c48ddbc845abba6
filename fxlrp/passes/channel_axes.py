"""Which axis of a value is that of its channels: the one that the layer that made it has them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

from torch import fx

from fxlrp.passes.facts import Facts, facts
from fxlrp.vocabulary import Arguments, Kind

Shapes = dict[fx.Node, Any]
"""The shape of every node that is a tensor; of a list, those of its entries."""

AXIS_1 = (
    "conv", "avg_pool", "max_pool", "adaptive_", "upsample_", "batch_norm", "group_norm", "instance_norm", "col2im",
)  # fmt: skip
"""How the names of operations begin whose results have channels behind the batch."""

LAST = frozenset({"linear", "matmul", "layer_norm", "rms_norm", "embedding", "scaled_dot_product_attention", "lstm"})
"""Operations whose results have features in the last axis."""

CUT_ANEW = frozenset({"reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"})

REDUCED = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm", "logsumexp", "unbind", "select",
})  # fmt: skip

LOST = frozenset({"einsum", "im2col", "unfold"})
"""Operations after which it is not told."""


def channel_axes(graph: fx.Graph, shapes: Shapes) -> dict[fx.Node, int | None]:
    """The axis of the channels of every forward value that carries signal; ``None`` where it is not told."""
    axes: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        if node.op != "output" and facts(node).signal:
            axes[node] = _axis(node, facts(node), shapes, axes)
    return axes


def _axis(node: fx.Node, known: Facts, shapes: Shapes, axes: dict[fx.Node, int | None]) -> int | None:
    if node.op == "placeholder":
        return None
    rank = len(_first(shapes[node]))
    if node.target is getitem:
        source = known.operands[0][1]
        return rank - 1 if facts(source).kind is Kind.RECURRENT else axes[source]
    assert known.operation is not None
    name = known.operation.name
    arguments = known.operation.arguments(node.args, node.kwargs)
    if name in LAST:
        several = len(arguments.get("normalized_shape", ())) > 1
        return axes[known.operands[0][1]] if several else rank - 1
    if name.startswith(AXIS_1):
        return 1
    if name in LOST:
        return None
    source = known.operands[0][1]
    axis, before = axes[source], _first(shapes[source])
    if known.kind in (Kind.JOIN, Kind.GATE) or len(known.operands) > 1:
        return _agreed(node, known, shapes, axes) if name != "stack" else _moved(name, arguments, axis, before, rank)
    return None if axis is None else _moved(name, arguments, axis, before, rank, _first(shapes[node]))


def _agreed(node: fx.Node, known: Facts, shapes: Shapes, axes: dict[fx.Node, int | None]) -> int | None:
    """The axis that all operands have channels in, seen from the back, because an operand may be broadcast."""
    shape = _first(shapes[node])
    found = set()
    for _, operand in known.operands:
        axis = axes[operand]
        if axis is not None:
            found.add(axis + len(shape) - len(_first(shapes[operand])))
    return found.pop() if len(found) == 1 else None


def _moved(
    name: str, arguments: Arguments, axis: int | None, before: Sequence[int], rank: int,
    after: Sequence[int] = (),
) -> int | None:
    """Where ``axis`` of a value of the shape ``before`` is after an operation that makes a value of rank ``rank``."""
    if axis is None:
        return None
    if name in CUT_ANEW:
        return _found_again(axis, before, after)
    if name in REDUCED:
        return _left(axis, arguments, before)
    follow = _MOVES.get(name)
    if follow is not None:
        return follow(axis, arguments, len(before))
    return axis + rank - len(before) if rank >= len(before) else None


def _found_again(axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis that a reshape leaves as it is, if it does."""
    outer = _product(before[:axis])
    fitting = [i for i, size in enumerate(after) if size == before[axis] and _product(after[:i]) == outer]
    return fitting[-1] if fitting and (len(fitting) == 1 or before[axis] > 1) else None


def _left(axis: int, arguments: Arguments, before: Sequence[int]) -> int | None:
    dim = arguments.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or range(len(before)))
    gone = {d % len(before) for d in dims}
    if arguments.get("keepdim"):
        return axis
    return None if axis in gone else axis - sum(d < axis for d in gone)


def _swapped(axis: int, arguments: Arguments, rank: int) -> int:
    first, second = (arguments[name] % rank for name in ("dim0", "dim1"))
    return {first: second, second: first}.get(axis, axis)


def _indexed(axis: int, arguments: Arguments, rank: int) -> int | None:
    """One index of one axis leaves the others where they are."""
    indices = [index for index in arguments["indices"] if index is not None]
    one = len(indices) == 1 and len(arguments["indices"]) <= rank
    return axis if one else None


_MOVES: dict[str, Callable[[int, Arguments, int], int | None]] = {
    "permute": lambda axis, a, rank: [d % rank for d in a["dims"]].index(axis),
    "transpose": _swapped,
    "t": lambda axis, a, rank: 1 - axis,
    "stack": lambda axis, a, rank: axis + (a["dim"] % (rank + 1) <= axis),
    "index": _indexed,
}


def _first(shape: Any) -> Sequence[int]:
    """The shape, or that of a list's first entry."""
    return shape[0] if isinstance(shape, list) else shape


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
