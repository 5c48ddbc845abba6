"""Where the channels go: the axis of a result that is that of its channels, per operation.

Every function takes the axis of the first operand's channels (``None``: not told), the arguments, the
operand's shape and the result's, and returns the axis in the result, or ``None`` where it is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod

from fxlrp.vocabulary.operation import Arguments

ChannelMove = Callable[[int | None, Arguments, Sequence[int], Sequence[int]], int | None]


def behind_batch(axis: int | None, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    return 1


def last(axis: int | None, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Features are the last axis; a norm over several axes leaves them where they are."""
    return axis if len(a.get("normalized_shape", ())) > 1 else len(after) - 1


def lost(axis: int | None, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    return None


def if_told(move: Callable[[int, Arguments, Sequence[int], Sequence[int]], int | None]) -> ChannelMove:
    """A move of an axis, as one that tells nothing where that is not told."""

    @wraps(move)
    def moved(axis: int | None, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
        return None if axis is None else move(axis, a, before, after)

    return moved


@if_told
def counted_from_behind(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Where nothing else is said: axes may have been added in front."""
    return axis + len(after) - len(before) if len(after) >= len(before) else None


@if_told
def cut_anew(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis that a reshape leaves as it is, if it does."""
    outer = prod(before[:axis])
    fitting = [i for i, size in enumerate(after) if size == before[axis] and prod(after[:i]) == outer]
    return fitting[-1] if fitting and (len(fitting) == 1 or before[axis] > 1) else None


@if_told
def reduced(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    dim = a.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or range(len(before)))
    gone = {d % len(before) for d in dims}
    if a.get("keepdim"):
        return axis
    return None if axis in gone else axis - sum(d < axis for d in gone)


@if_told
def permuted(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    return [d % len(before) for d in a["dims"]].index(axis)


@if_told
def swapped(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    first, second = (a.get(name, default) % len(before) for name, default in (("dim0", 0), ("dim1", 1)))
    return {first: second, second: first}.get(axis, axis)


@if_told
def stacked(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    return axis + (a["dim"] % len(after) <= axis)


@if_told
def indexed(axis: int, a: Arguments, before: Sequence[int], after: Sequence[int]) -> int | None:
    """One index of one axis leaves the others where they are."""
    indices = [index for index in a["indices"] if index is not None]
    return axis if len(indices) == 1 and len(a["indices"]) <= len(before) else None
