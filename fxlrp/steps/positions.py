"""Where the batch is in a tensor, and where it goes when the tensor is moved, cut, picked from or joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling
from fxlrp.steps.declaration import primitive


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
    """The axis that each tensor indexes; a mask of several axes is the places where it is set."""
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        if index.dtype in (torch.bool, torch.uint8) and index.dim() > 1:
            yield from enumerate(index.nonzero(as_tuple=True), axis)
            axis += index.dim()
        else:
            yield axis, index
            axis += 1


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
    positions: Sequence[AnyPosition | None], parts: Sequence[Tensor], dim: int, batch: int, *, stacks: bool = False
) -> AnyPosition:
    """After parts were put behind each other along ``dim``, or stacked: also where they are of other items.

    A part without a position is a constant. It holds nothing of any item, and counts as of the first where it lies
    along the batch.
    """
    of_items = [(position, part) for position, part in zip(positions, parts, strict=True) if position is not None]
    if len(of_items) < len(parts):
        known = [position for position, _ in of_items]
        axis = dim % (parts[0].dim() + stacks)
        owners = [position.owners for position in known if isinstance(position, OwnedPosition)]
        one = len(owners) == len(known) and all(len(each) == 1 for each in owners)
        alone = one and all(torch.equal(each, owners[0]) for each in owners)
        if alone or not any(_has_one_owner(each) or (not stacks and each[0] == axis) for each in known):
            return _joined(known, [part for _, part in of_items], dim, batch, stacks)
        nobody = OwnedPosition(0, 1, torch.zeros(1, dtype=torch.long, device=parts[0].device))
        positions = [nobody if position is None else position for position in positions]
    return _joined(positions, parts, dim, batch, stacks)  # type: ignore[arg-type]


def _joined(
    positions: Sequence[AnyPosition], parts: Sequence[Tensor], dim: int, batch: int, stacks: bool
) -> AnyPosition:
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
def padded(position: AnyPosition, pad: Sequence[int], shape: Sequence[int], batch: int) -> AnyPosition:
    """After constants were put around a value of this shape, as ``torch.nn.functional.pad`` counts axes.

    Entries before and behind the items are of the first and of the last one: they hold nothing of any.
    """
    place = 2 * (len(shape) - 1 - position[0])
    if _has_one_owner(position) or place >= len(pad) or not any(pad[place : place + 2]):
        return position
    owners = owners_of(position, shape[position[0]], batch, torch.device("cpu"))
    places = torch.arange(-pad[place], len(owners) + pad[place + 1]).clamp(0, len(owners) - 1)
    return OwnedPosition(position[0], 1, owners[places])


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
def written(position: AnyPosition, shape: Sequence[int], batch: int) -> AnyPosition:
    """After values were written to places: entries are of the item in whose place they are.

    ``shape`` is that of what they were written to. Where it holds no whole batch, all of it is of the one item whose
    values they are.
    """
    if _has_one_owner(position) and (not shape or shape[0] % batch):
        return position
    return Position(0) if isinstance(position, OwnedPosition) else position


@primitive
def placed(
    position: AnyPosition, dim: int, shape: Sequence[int], batch: int, start: int | None, end: int | None, step: int = 1
) -> AnyPosition:
    """After values were written to a slice along ``dim`` of a constant of this shape, which has nothing of any item."""
    if _has_one_owner(position) or dim % len(shape) != position[0]:
        return position
    owners = torch.zeros(shape[position[0]], dtype=torch.long)
    places = owners[start:end:step]
    places.copy_(owners_of(position, len(places), batch, owners.device))
    return position if len(places) == len(owners) else OwnedPosition(position[0], 1, owners)


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
        return _reshaped_owners(position, after, outer)
    leading = 1
    for axis, size in enumerate(after):
        if leading * size > outer and outer % leading == 0 and (leading * size) % (outer * batch) == 0:
            return Position(axis, outer // leading)
        leading *= size
    raise ValueError(f"the batch of {batch} is torn apart by a reshape from {tuple(before)} to {tuple(after)}")


def _reshaped_owners(position: OwnedPosition, after: Sequence[int], outer: int) -> OwnedPosition:
    """The owners after a reshape, where one of the new axes tells whose an entry is.

    Up to an axis, entries are as many as the owners, or more, or so many fewer that each is of one item.
    """
    if _has_one_owner(position):
        return position
    owners, leading = position.owners.repeat(outer), 1
    for axis, new in enumerate(after):
        reach = leading * new
        each, fine = max(len(owners) // reach, 1), reach % len(owners) == 0 or len(owners) % reach == 0
        if new > 1 and fine:
            groups = owners.repeat_interleave(max(reach // len(owners), 1)).reshape(leading, new, each)
            if is_compiling() or not bool((groups != groups[:1, :, :1]).any()):
                return OwnedPosition(axis, 1, groups[0, :, 0])
        leading = reach
    raise ValueError(f"entries of several items are mixed by a reshape to {tuple(after)}")


@primitive
def einsum_position(position: AnyPosition, term: str, result: str) -> AnyPosition:
    """Where the batch is after an Einstein sum whose operand ``term`` has it at ``position``."""
    return _at(0 if _has_one_owner(position) else result.index(term[position[0]]), position)
