"""Which part of a tensor belongs to which item of the batch, and sums over items.

Nearly always the first axis is the batch. Sequence-first layouts, windows folded into the
batch and stacked projections put it elsewhere: there axis ``axis`` is ``outer × batch ×
inner`` long. A :class:`Position` says so and follows the moves of a value, a
:class:`BatchAxis` is what sums over items need. Where an index has picked entries of that
axis, as a router picks the tokens of an expert, each entry has an *owner*, the item that it is of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling
from fxlrp.steps.declaration import InPlace, along, primitive
from fxlrp.steps.memory import has_rows, holds_everywhere, writable
from fxlrp.steps.primitives import smallest_denominator


class Position(NamedTuple):
    """Where the batch is: in axis ``axis``, after a factor of ``outer``."""

    axis: int
    outer: int = 1


class OwnedPosition(NamedTuple):
    """Where entries of several items are, in axis ``axis``; ``owners`` tells the item of each.

    One owner alone is that of everything, whatever the axis.
    """

    axis: int
    outer: int
    owners: Tensor


AnyPosition = Position | OwnedPosition


class BatchAxis(NamedTuple):
    """A position, and how many items there are."""

    axis: int
    outer: int
    batch: int
    owners: Tensor | None = None


def _has_one_owner(position: AnyPosition) -> bool:
    return isinstance(position, OwnedPosition) and position.owners.numel() == 1


def _at(axis: int, position: AnyPosition) -> Any:
    """The position in another axis."""
    return type(position)(axis, *position[1:])


@primitive
def owners_in(position: AnyPosition) -> Tensor | None:
    """The owners that a position tells; ``None``: it tells none."""
    return position.owners if isinstance(position, OwnedPosition) else None


@primitive
def permuted(position: AnyPosition, dims: Sequence[int], rank: int) -> AnyPosition:
    """After ``permute(dims)``."""
    return _at([d % rank for d in dims].index(position[0]), position)


@primitive
def swapped(position: AnyPosition, first: int, second: int, rank: int) -> AnyPosition:
    """After ``transpose(first, second)``."""
    first, second = first % rank, second % rank
    axis = {first: second, second: first}.get(position[0], position[0])
    return _at(axis, position)


@primitive
def behind_places(position: AnyPosition) -> AnyPosition:
    """In the states of a recurrent layer whose sequence has the batch at ``position``."""
    return _at(1, position)


@primitive
def inserted(position: AnyPosition, dim: int, rank: int) -> AnyPosition:
    """After ``unsqueeze(dim)`` or ``stack`` of values of rank ``rank``."""
    return _at(position[0] + (dim % (rank + 1) <= position[0]), position)


@primitive
def removed(position: AnyPosition, dims: int | Sequence[int] | None, rank: int) -> AnyPosition:
    """After the axes ``dims`` were reduced, selected or squeezed away."""
    if _has_one_owner(position):
        return _at(0, position)
    gone = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    return _at(position[0] - sum(d < position[0] for d in gone), position)


@primitive
def indexed(
    position: AnyPosition, indices: Sequence[Tensor | None], shape: Sequence[int] = (), batch: int = 1
) -> AnyPosition:
    """After an index with tensors (``None``: the axis is kept); what axes that lie apart pick moves in front."""
    given = {} if _has_one_owner(position) else dict(_by_axis(indices))
    if position[0] in given and all(index.dim() == 1 for index in given.values()) and batch > 1:
        picked = sorted(given)
        apart = picked[-1] - picked[0] >= len(picked)
        chosen = given[position[0]]
        owners = owners_of(position, shape[position[0]], batch, chosen.device)[chosen]
        return OwnedPosition(0 if apart else picked[0], 1, owners)
    masks = (torch.bool, torch.uint8)
    kept: list[bool] = []
    for index in indices:
        kept += [True] if index is None else [False] * (index.dim() if index.dtype in masks else 1)
    picked = [axis for axis, stays in enumerate(kept) if not stays]
    rank = max(1 if index.dtype in masks else index.dim() for index in indices if index is not None)
    behind = picked[0] < position[0] or picked[-1] - picked[0] >= len(picked)
    return _at(position[0] - sum(axis < position[0] for axis in picked) + (rank if behind else 0), position)


@primitive
def selected(position: AnyPosition, dim: int, index: Tensor, shape: Sequence[int], batch: int) -> AnyPosition:
    """After ``index_select``."""
    return indexed(position, [None] * (dim % len(shape)) + [index.reshape(-1)], shape, batch)


def _by_axis(indices: Sequence[Tensor | None]) -> Iterator[tuple[int, Tensor]]:
    """The axis that each tensor indexes; a mask of several axes is no list of entries."""
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        several = index.dim() if index.dtype in (torch.bool, torch.uint8) else 1
        yield axis, index
        axis += several


def owners_of(position: AnyPosition, size: int, batch: int, device: torch.device) -> Tensor:
    """The item that each of the ``size`` entries of the batch's axis is of."""
    if isinstance(position, OwnedPosition):
        return position.owners.expand(size)
    entries = torch.arange(size, device=device)
    return entries // (size // (position[1] * batch)) % batch


@primitive
def sliced(
    position: AnyPosition, dim: int, shape: Sequence[int], batch: int, start: int | None, end: int | None, step: int = 1
) -> AnyPosition:
    """After a slice along ``dim`` of a value of this shape; of the batch's axis, items are left."""
    if batch == 1 or _has_one_owner(position) or dim % len(shape) != position[0]:
        return position
    owners = owners_of(position, shape[position[0]], batch, torch.device("cpu"))
    return OwnedPosition(position[0], 1, owners[start:end:step])


@primitive
def picked(
    position: AnyPosition, dim: int, shape: Sequence[int], batch: int, index: int, piece: Tensor
) -> AnyPosition:
    """After one entry of ``dim`` was picked, or all of them were taken apart: of the batch's axis, one item is left.

    Args:
        position: where the batch was.
        dim: the axis that is gone.
        shape: of the value.
        batch: the number of items.
        index: which entry.
        piece: it.
    """
    if batch == 1 or dim % len(shape) != position[0]:
        return removed(position, dim, len(shape))
    return OwnedPosition(0, 1, owners_of(position, shape[position[0]], batch, piece.device)[index].reshape(1))


@primitive
def joined(
    positions: Sequence[AnyPosition], parts: Sequence[Tensor], dim: int, batch: int, *, stacks: bool = False
) -> AnyPosition:
    """After parts were put behind each other along ``dim``, or stacked: also where they are of other items."""
    first, rank = positions[0], parts[0].dim()
    owned = any(isinstance(position, OwnedPosition) for position in positions)
    if batch == 1 or not (owned or (not stacks and any(position[0] == dim % rank for position in positions))):
        return inserted(first, dim, rank) if stacks else first
    dim %= rank + stacks
    owners, along = [], []
    for position, part in zip(positions, parts, strict=True):
        one = _has_one_owner(position)
        owners.append(owners_of(position, 1 if one else part.shape[position[0]], batch, part.device))
        along.append(not (stacks or one) and position[0] == dim)
    alike = all(torch.equal(entries, owners[0]) for entries in owners) and len({p[0] for p in positions}) == 1
    if alike and not along[0]:
        return inserted(first, dim, rank) if stacks else first
    whose = []
    for entries, part, there in zip(owners, parts, along, strict=True):
        if not there and bool((entries != entries[0]).any()):
            raise ValueError("values of several items are put beside values of others")
        whose.append(entries if there else entries[:1].expand(1 if stacks else part.shape[dim]))
    found = torch.cat(whose)
    times = max(len(found) // batch, 1)
    in_order = torch.arange(batch, device=found.device).repeat(times)
    return Position(dim, times) if torch.equal(found, in_order) else OwnedPosition(dim, 1, found)


@primitive
def repeated(position: AnyPosition, repeats: Sequence[int], rank: int) -> AnyPosition:
    """After ``repeat`` of a value of rank ``rank``: along the batch's axis all items stand behind each other anew."""
    axis = position[0] + len(repeats) - rank
    times = repeats[axis]
    if isinstance(position, OwnedPosition):
        return OwnedPosition(axis, 1, position.owners if _has_one_owner(position) else position.owners.repeat(times))
    return Position(axis, position[1] * times)


@primitive
def summed(position: AnyPosition, dim: int, rank: int) -> AnyPosition:
    """After a sum of what an index says onto zeros along ``dim``: entries are of whose place they are in."""
    return Position(position[0]) if dim % rank == position[0] else position


@primitive
def written(position: AnyPosition) -> AnyPosition:
    """After values were written to places: entries are of the item in whose place they are."""
    return Position(0) if isinstance(position, OwnedPosition) else position


@primitive
def expanded(position: AnyPosition, rank: int, new_rank: int) -> AnyPosition:
    """After axes were put in front."""
    return _at(position[0] + new_rank - rank, position)


@primitive
def reshaped(position: AnyPosition, before: Sequence[int], after: Sequence[int], batch: int) -> AnyPosition:
    """After a reshape from the shape ``before`` to ``after``."""
    if batch == 1:  # a shape does not tell where a single item is, and sums need not know
        return Position(0)
    outer = position[1]  # how many elements of the leading axes lie before an item's index
    for size in before[: position[0]]:
        outer *= size
    if isinstance(position, OwnedPosition):
        return _reshaped_owners(position, before, after, outer)
    leading = 1
    for axis, size in enumerate(after):
        if leading * size > outer and outer % leading == 0 and (leading * size) % (outer * batch) == 0:
            return Position(axis, outer // leading)
        leading *= size
    raise ValueError(f"the batch of {batch} is torn apart by a reshape from {tuple(before)} to {tuple(after)}")


def _reshaped_owners(
    position: OwnedPosition, before: Sequence[int], after: Sequence[int], outer: int
) -> OwnedPosition:
    """The owners after a reshape that keeps their axis, joins it with those behind it, or cuts it into equal groups."""
    owners = position.owners
    if _has_one_owner(position):
        return position
    size, leading = before[position[0]], 1
    for axis, new in enumerate(after):
        if leading == outer and new % size == 0:
            return OwnedPosition(axis, 1, owners.repeat_interleave(new // size))
        if leading == outer and new > 1 and size % new == 0:
            groups = owners.reshape(new, -1)
            if not is_compiling() and bool((groups != groups[:, :1]).any()):
                break
            return OwnedPosition(axis, 1, groups[:, 0])
        leading *= new
    raise ValueError(f"entries of several items are mixed by a reshape from {tuple(before)} to {tuple(after)}")


@primitive
def einsum_position(position: AnyPosition, term: str, result: str) -> AnyPosition:
    """Where the batch is after an Einstein sum whose operand ``term`` has it at ``position``."""
    return _at(0 if _has_one_owner(position) else result.index(term[position[0]]), position)


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
    axis = 0 if batch_axis is None else batch_axis[0] % value.dim()
    dims = [d for d in range(value.dim()) if d != axis]
    rows = value.sum(dim=dims, dtype=dtype) if dims else value.to(dtype or value.dtype, copy=True)
    if batch_axis is None:
        return rows
    _, outer, batch, _ = BatchAxis(*batch_axis)
    if owners is not None:
        return rows.new_zeros(batch).index_add(0, owners, rows)
    return rows if rows.shape[0] == batch else rows.reshape(outer, batch, -1).sum(dim=(0, 2))


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


@primitive(reads=True)
def rescale_signed_into(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale_signed_to`, into ``share``."""
    if share.device.type != "cpu" or not (has_rows(share) or writable(share, received)):
        return rescale_signed_to(share, received, support, batch_axis)
    magnitude = share.abs()
    total = sum_items(magnitude, batch_axis)
    nothing = (received == 0) & (total == 0)
    if not holds_everywhere(nothing | (total > smallest_denominator(share.dtype) * received.abs())):
        return rescale_signed_to(share, received, support, batch_axis)
    lacking = received - sum_items(share, batch_axis)
    factor = spread_items(lacking / total.masked_fill(nothing, 1), share, batch_axis)
    return share.add_(magnitude.mul_(factor))  # two steps, because torch.vmap knows no addcmul


@primitive(fresh=True, writes_into=InPlace(rescale_signed_into))
def rescale_signed_to(
    share: Tensor, received: Tensor, support: Tensor | None = None, batch_axis: BatchAxis | None = None
) -> Tensor:
    """:func:`rescale` of relevance of any sign, to the sums ``received``, (batch,)."""
    magnitude = share.abs()
    return _completed(share, magnitude, received, received, support, batch_axis)


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
