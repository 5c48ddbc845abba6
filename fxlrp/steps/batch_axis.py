"""Sums over the items of a batch, wherever it is, and what rescales relevance to them.

Nearly always the first axis is the batch. Sequence-first layouts, windows folded into the
batch and stacked projections put it elsewhere: there axis ``axis`` is ``outer × batch ×
inner`` long. A :class:`Position` says so and follows the moves of a value, a
:class:`BatchAxis` is what sums over items need. Where an index has picked entries of that
axis, as a router picks the tokens of an expert, each entry has an *owner*, the item that it is of.
What follows the moves of a value is in :mod:`fxlrp.steps.positions`; its names are known here too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import PropagationError
from fxlrp.steps.declaration import InPlace, along, primitive
from fxlrp.steps.memory import has_rows, holds_everywhere, writable
from fxlrp.steps.positions import (
    AnyPosition,
    BatchAxis,
    OwnedPosition,
    Position,
    behind_places,
    einsum_position,
    expanded,
    indexed,
    inserted,
    joined,
    owners_in,
    owners_of,
    padded,
    permuted,
    picked,
    placed,
    removed,
    repeated,
    reshaped,
    selected,
    sliced,
    summed,
    swapped,
    written,
)
from fxlrp.steps.primitives import smallest_denominator

__all__ = [
    "AnyPosition", "BatchAxis", "OwnedPosition", "Position", "behind_places", "conditioned", "einsum_position",
    "expanded", "indexed", "inserted", "item_sum", "joined", "owners_in", "owners_of", "padded", "permuted",
    "picked", "placed", "removed", "repeated", "rescale", "rescale_along", "rescale_into", "rescale_signed_into",
    "rescale_signed_to", "rescale_to", "reshaped", "row_sums", "rows_of", "select_target", "selected",
    "sliced", "spread_items", "sum_items", "summed", "swapped", "total", "written",
]  # fmt: skip


@primitive(linear="first", reads=True)
def item_sum(relevance: Tensor, batch_axis: BatchAxis | None = None) -> Tensor:
    """Sum over everything but the batch, in float64: shape (batch,)."""
    return sum_items(relevance, batch_axis, torch.float64)


@primitive(reads=True)
def sum_items(value: Tensor, batch_axis: BatchAxis | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Sum over everything but the batch; ``batch_axis`` ``None``: the first axis is the batch."""
    if batch_axis is not None and batch_axis[2] == 1:
        return value.sum(dtype=dtype).reshape(1)
    owners = None if batch_axis is None else BatchAxis(*batch_axis).owners
    if batch_axis is not None and owners is not None and owners.numel() == 1:
        whole = value.sum(dtype=dtype).reshape(1)
        return whole.new_zeros(batch_axis[2]).index_add(0, owners, whole)
    _check_items(value)
    axis = 0 if batch_axis is None else batch_axis[0] % value.dim()
    dims = [d for d in range(value.dim()) if d != axis]
    rows = value.sum(dim=dims, dtype=dtype) if dims else value.to(dtype or value.dtype, copy=True)
    if batch_axis is None:
        return rows
    _, outer, batch, _ = BatchAxis(*batch_axis)
    if owners is not None:
        return rows.new_zeros(batch).index_add(0, owners, rows)
    return rows if rows.shape[0] == batch else rows.reshape(outer, batch, -1).sum(dim=(0, 2))


def _check_items(value: Tensor) -> None:
    """Raise where a value of several items is one number."""
    if value.dim() == 0:
        raise PropagationError(
            "forward() makes one number of all items of the batch, such as their largest value, and passes it on to "
            "each: items are explained one by one. Reduce over the axes of an item, as x.amax((1, 2), keepdim=True) "
            "does, or give one item at a time"
        )


@primitive(linear="first")
def total(relevance: Tensor, batch_axis: BatchAxis | None = None) -> Tensor:
    """The sum over everything but the batch: (batch,)."""
    return item_sum(relevance, batch_axis).to(relevance.dtype)


@primitive
def rows_of(value: Tensor) -> BatchAxis:
    """Each entry of the first axis as an item of its own; a vector is one."""
    return BatchAxis(0, 1, value.shape[0] if value.dim() > 1 else 1)


@primitive(linear="first")
def row_sums(relevance: Tensor) -> Tensor:
    """The sum over each entry of the first axis: (rows,); of a single number, (1,)."""
    return total(relevance) if relevance.dim() else relevance.reshape(1)


@primitive(linear="first")
def select_target(values: Tensor, number: Tensor) -> Tensor:
    """The entry of this number of values (targets, ...)."""
    return values.index_select(0, number.reshape(1)).squeeze(0)


def spread_items(value: Tensor, like: Tensor, batch_axis: BatchAxis | None) -> Tensor:
    """``value``, (batch,), in a shape that broadcasts to ``like``."""
    if batch_axis is None:
        return value.reshape(-1, *[1] * (like.dim() - 1))
    axis, outer, batch, owners = BatchAxis(*batch_axis)
    if batch == 1:
        return value.reshape([1] * like.dim())
    if owners is not None and owners.numel() == 1:
        return value.index_select(0, owners).reshape([1] * like.dim())
    _check_items(like)
    size = like.shape[axis]
    if owners is not None:
        value = value.index_select(0, owners)
    elif size != batch:
        value = value.reshape(1, batch, 1).expand(outer, batch, size // (outer * batch)).reshape(size)
    shape = [1] * like.dim()
    shape[axis] = size
    return value.reshape(shape)


@primitive
def rescale(
    share: Tensor, relevance: Tensor, support: Tensor | None = None, signed: bool = True,
    batch_axis: BatchAxis | None = None, received_batch_axis: BatchAxis | None = None,
) -> Tensor:
    """Hand what ``share`` lacks of ``relevance`` to its elements in proportion to their magnitude.

    One factor per item. An item whose share is all zero gets its relevance evenly over
    ``support`` (ones where an element carries signal; ``None``: everywhere).

    Args:
        share: (batch, ...), the relevance that reached the operand.
        relevance: (batch, ...), the relevance that the node received.
        support: like ``share``, or ``None``.
        signed: whether relevance may be negative.
        batch_axis: where the batch is in ``share``; ``None``: in front, as above.
        received_batch_axis: where it is in ``relevance``.
    """
    to = rescale_signed_to if signed else rescale_to
    return to(share, sum_items(relevance, received_batch_axis), support, batch_axis)


@primitive(reads=True)
def rescale_into(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale_to`, into ``share``.

    On a CPU, items that need no rescaling cost no work.
    """
    if share.device.type != "cpu" or not (has_rows(share) or writable(share, received)):
        return rescale_to(share, received, support, batch_axis)
    total = sum_items(share, batch_axis)
    nothing = received == 0  # then there is nothing in the share either, and its sum is no divisor
    if not holds_everywhere(nothing | (total > smallest_denominator(share.dtype) * received.abs())):
        return rescale_to(share, received, support, batch_axis)
    return share.mul_(spread_items(received / total.masked_fill(nothing, 1), share, batch_axis))


@primitive(fresh=True, writes_into=InPlace(rescale_into))
def rescale_to(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale` of relevance that is nowhere negative, to the sums ``received``, (batch,)."""
    total = sum_items(share, batch_axis)
    empty = _is_empty(total, received, share)
    evenly = received / _carriers(share, support, batch_axis, received)
    even = spread_items(evenly.masked_fill(~empty, 0), share, batch_axis)
    if support is not None:
        even = even * support
    # share + share · (received − total) / total, in one step
    divisor = total.masked_fill(empty, float("inf"))
    return torch.addcmul(even, share, spread_items(received / divisor, share, batch_axis))


_ROUNDED = 16
"""By so many last digits of its sum an item may be off for rounding alone."""


@primitive(reads=True)
def rescale_signed_into(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale_signed_to`, into ``share``."""
    if share.device.type != "cpu" or not (has_rows(share) or writable(share, received)):
        return rescale_signed_to(share, received, support, batch_axis)
    given = sum_items(share, batch_axis)
    if _is_rounded(share, given, received):
        return share.mul_(spread_items(_ratio(received, given), share, batch_axis))
    magnitude = share.abs()
    total = sum_items(magnitude, batch_axis)
    nothing = (received == 0) & (total == 0)
    if not holds_everywhere(nothing | (total > smallest_denominator(share.dtype) * received.abs())):
        return rescale_signed_to(share, received, support, batch_axis)
    factor = spread_items((received - given) / total.masked_fill(nothing, 1), share, batch_axis)
    return share.add_(magnitude.mul_(factor))  # two steps, because torch.vmap knows no addcmul


@primitive(fresh=True, writes_into=InPlace(rescale_signed_into))
def rescale_signed_to(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale` of relevance of any sign, to the sums ``received``, (batch,).

    On a CPU, items that lack no more than rounding are multiplied by a number: that takes no magnitudes.
    """
    given = sum_items(share, batch_axis)
    if _is_rounded(share, given, received):
        return share * spread_items(_ratio(received, given), share, batch_axis)
    return _completed(share, share.abs(), received, received, support, batch_axis)


def _is_rounded(share: Tensor, given: Tensor, received: Tensor) -> bool:
    """Whether all items have what they should have but for rounding; not asked where the answer is no number yet."""
    if is_compiling() or type(share) is not Tensor or share.device.type != "cpu":
        return False
    return holds_everywhere((received - given).abs() <= _ROUNDED * torch.finfo(share.dtype).eps * received.abs())


def _ratio(received: Tensor, given: Tensor) -> Tensor:
    """``received / given``; one where both are zero."""
    nothing = given == 0
    return received.masked_fill(nothing, 1) / given.masked_fill(nothing, 1)


@along(rescale)
def rescale_along(
    share: Tensor, relevance: Tensor, support: Tensor | None = None, signed: bool = True,
    batch_axis: BatchAxis | None = None, received_batch_axis: BatchAxis | None = None, *, whole: tuple[Tensor, ...],
) -> Tensor:
    """Hand what ``share``, a part, lacks of ``relevance`` to its elements as the whole does.

    In proportion to the magnitude of the whole share, ``whole[0]``, of the whole relevance
    ``whole[1]``: linear in ``share`` and ``relevance``, and equal to :func:`rescale` where
    they are the whole. The other arguments are those of :func:`rescale`.
    """
    whole_share, whole_relevance, *_ = whole
    received = sum_items(relevance, received_batch_axis)
    whole_received = received if whole_relevance is relevance else sum_items(whole_relevance, received_batch_axis)
    magnitude = whole_share.abs() if signed else whole_share
    return _completed(share, magnitude, received, whole_received, support, batch_axis)


def _completed(
    share: Tensor, magnitude: Tensor, received: Tensor, whole_received: Tensor, support: Tensor | None,
    batch_axis: BatchAxis | None,
) -> Tensor:  # fmt: skip
    """``share`` with what it lacks of ``received``, in proportion to ``magnitude``, or evenly where that is zero."""
    total = sum_items(magnitude, batch_axis)
    empty = _is_empty(total, whole_received, share)
    lacking = received - sum_items(share, batch_axis)
    evenly = lacking / _carriers(share, support, batch_axis, received)
    even = spread_items(evenly.masked_fill(~empty, 0), share, batch_axis)
    if support is not None:
        even = even * support
    divisor = total.masked_fill(empty, float("inf"))
    return share + (magnitude * spread_items(lacking / divisor, share, batch_axis) + even)


def _is_empty(total: Tensor, received: Tensor, share: Tensor) -> Tensor:
    """Which items have no share: nothing beside what was received, which may be as small as a probability."""
    return total <= smallest_denominator(share.dtype) * received.abs()


def _carriers(share: Tensor, support: Tensor | None, batch_axis: BatchAxis | None, received: Tensor) -> Tensor | int:
    """How many elements of an item carry signal."""
    if support is None and batch_axis is not None and BatchAxis(*batch_axis).owners is not None:
        return sum_items(torch.ones_like(share), batch_axis).clamp(min=1)
    if support is not None:
        return sum_items(support, batch_axis).clamp(min=1)
    return share.numel() // max(1, received.shape[0])  # no item at all: a layer to which none goes


@primitive(linear="first")
def conditioned(relevance: Tensor, mask: Tensor, position: Position | None = None) -> Tensor:
    """What a condition keeps of the relevance of a module's output.

    Args:
        relevance: (batch, ...), or with the batch elsewhere.
        mask: broadcasts to one item of it, or to ``relevance`` where it has as many axes.
        position: where the batch is; ``None``: in front.
    """
    if mask.dim() < relevance.dim():
        axis = 0 if position is None else position[0] % relevance.dim()
        mask = mask.reshape([1] * (relevance.dim() - 1 - mask.dim()) + list(mask.shape)).unsqueeze(axis)
    return relevance * mask.to(relevance.dtype)
