"""Moving relevance back: the transpose of every operation that only moves values.

Each function takes the relevance of the moved value and what it has to know of the
operand, mostly its shape, and returns the relevance of the operand(s).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive

aten = torch.ops.aten

Pieces = Sequence[tuple[int, Tensor]]
"""Relevance of pieces of a split, by their index."""


@primitive(linear="first")
def unreshape(relevance: Tensor, shape: torch.Size) -> Tensor:
    """Back to ``shape``."""
    return relevance.reshape(shape)


@primitive(linear="first")
def unpermute(relevance: Tensor, dims: Sequence[int]) -> Tensor:
    """The inverse of ``permute(dims)``."""
    inverse = [0] * len(dims)
    for to, origin in enumerate(dims):
        inverse[origin % len(dims)] = to
    return relevance.permute(inverse)


@primitive(linear="first")
def unslice(
    relevance: Tensor, shape: torch.Size, dim: int, start: int | None, end: int | None, step: int
) -> Tensor:
    """Zeros of ``shape``, with the slice filled in."""
    return torch.slice_scatter(relevance.new_zeros(shape), relevance, dim, *_within(shape[dim], start, end), step)


def _within(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """The bounds of a slice as numbers from 0 to ``size``: vmap does not take ``x[1:]`` for what it is."""
    first, last, _ = slice(start, end).indices(size)
    return first, last


@primitive(linear="first")
def unselect(relevance: Tensor, shape: torch.Size, dim: int, index: int) -> Tensor:
    """Zeros of ``shape``, with the selected entry filled in."""
    return torch.select_scatter(relevance.new_zeros(shape), relevance, dim, index)


@primitive(linear="first")
def unpad(relevance: Tensor, pad: Sequence[int]) -> Tensor:
    """Cut constant padding off (or put zeros where ``pad`` was negative)."""
    return aten.constant_pad_nd(relevance, [-p for p in pad])


@primitive(linear="first")
def outside(relevance: Tensor, pad: Sequence[int]) -> Tensor:
    """The relevance that lies in constant padding, zero elsewhere."""
    inside = aten.constant_pad_nd(torch.ones_like(relevance), [-p for p in pad])
    return relevance * (1 - aten.constant_pad_nd(inside, pad))


@primitive(linear="first")
def unrepeat(relevance: Tensor, shape: torch.Size, repeats: Sequence[int]) -> Tensor:
    """Sum over the copies that ``repeat`` made of a value of ``shape``."""
    full = [1] * (len(repeats) - len(shape)) + list(shape)
    parted = relevance.reshape([n for pair in zip(repeats, full, strict=True) for n in pair])
    return parted.sum(dim=tuple(range(0, 2 * len(repeats), 2))).reshape(shape)


@primitive(linear="first")
def uncat(relevance: Tensor, tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    """One piece for each of the concatenated ``tensors``."""
    pieces, start = [], 0
    for tensor in tensors:
        size = tensor.shape[dim]
        pieces.append(relevance.narrow(dim, start, size))
        start += size
    return pieces


@primitive(linear="first")
def unsplit(pieces: Pieces, values: Sequence[Tensor], dim: int) -> Tensor:
    """The pieces of a split joined again; a piece that nobody used has no relevance."""
    return torch.cat(_whole(pieces, values), dim)


def _whole(pieces: Pieces, values: Sequence[Tensor]) -> list[Tensor]:
    whole: list[Tensor | None] = [None] * len(values)
    for index, part in pieces:  # an index may count from the end, and may come more than once
        before = whole[index]
        whole[index] = part if before is None else before + part
    return [torch.zeros_like(value) if r is None else r for r, value in zip(whole, values, strict=True)]


@primitive(linear="first")
def unstack(relevance: Tensor, dim: int) -> list[Tensor]:
    """One slice for each of the stacked tensors."""
    return list(relevance.unbind(dim))


@primitive(linear="first")
def rebind(pieces: Pieces, values: Sequence[Tensor], dim: int) -> Tensor:
    """The slices of ``unbind`` stacked again; a slice that nobody used has no relevance."""
    return torch.stack(_whole(pieces, values), dim)


@primitive(linear="first")
def unroll(relevance: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Roll back."""
    return torch.roll(relevance, [-s for s in shifts], list(dims))


@primitive(linear="first")
def unpad_border(relevance: Tensor, x: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """Add reflected or replicated borders (``mode`` as ATen names it) back onto their origin."""
    backward = getattr(aten, f"{mode}_pad{len(pad) // 2}d_backward")
    return backward(relevance, x, pad)


@primitive(linear="first")
def unchannel_shuffle(relevance: Tensor, groups: int) -> Tensor:
    """The inverse of a channel shuffle: a shuffle with the other factor."""
    return torch.channel_shuffle(relevance, relevance.shape[1] // groups)


@primitive(linear="first")
def unrepeat_interleave(relevance: Tensor, shape: torch.Size, repeats: int, dim: int) -> Tensor:
    """Sum over the neighbouring copies of each element."""
    axis = dim % len(shape)
    return relevance.reshape(*shape[: axis + 1], repeats, *shape[axis + 1 :]).sum(dim=axis + 1)


@primitive(linear="first")
def fold_axis(relevance: Tensor, shape: torch.Size, dim: int, size: int, step: int) -> Tensor:
    """Add the windows that ``Tensor.unfold`` cut back up."""
    axis = dim % len(shape)
    windows = torch.arange(relevance.shape[axis], device=relevance.device) * step
    origin = windows.unsqueeze(1) + torch.arange(size, device=relevance.device)
    # Not ATen's unfold_backward, which vmap would call row by row.
    cut = relevance.movedim(-1, axis + 1).flatten(axis, axis + 1)
    return relevance.new_zeros(shape).index_add(axis, origin.flatten(), cut)


@primitive(linear="first")
def fold_patches(
    relevance: Tensor, shape: torch.Size, kernel: list[int], dilation: list[int], padding: list[int],
    stride: list[int],
) -> Tensor:
    """Add patches back up to an image of ``shape``."""
    return aten.col2im(relevance, shape[-2:], kernel, dilation, padding, stride)


@primitive(linear="first")
def unindex(relevance: Tensor, shape: torch.Size, indices: Sequence[Tensor | None]) -> Tensor:
    """Add every element back to where an index took it from."""
    return aten.index_put(relevance.new_zeros(shape), indices, relevance, True)


@primitive(linear="first")
def unindex_select(relevance: Tensor, shape: torch.Size, dim: int, index: Tensor) -> Tensor:
    """Add every slice back to where it was taken from."""
    return relevance.new_zeros(shape).index_add(dim, index, relevance)


@primitive(linear="first")
def ungather(relevance: Tensor, shape: torch.Size, dim: int, index: Tensor) -> Tensor:
    """Add every element back to where it was gathered from."""
    return relevance.new_zeros(shape).scatter_add(dim, index, relevance)


@primitive(linear="first")
def keep(relevance: Tensor, mask: Tensor) -> Tensor:
    """The relevance where ``mask`` is true."""
    return relevance * mask


@primitive(linear="first")
def drop(relevance: Tensor, mask: Tensor) -> Tensor:
    """The relevance where ``mask`` is false."""
    return relevance.masked_fill(mask, 0)


@primitive(linear="first")
def unscatter_slice(relevance: Tensor, dim: int, start: int | None, end: int | None, step: int) -> list[Tensor]:
    """The relevance of a value, and of the slice that was written into it."""
    part = aten.slice(relevance, dim, start, end, step)
    bounds = _within(relevance.shape[dim], start, end)
    return [torch.slice_scatter(relevance, torch.zeros_like(part), dim, *bounds, step), part]


@primitive(linear="first")
def unscatter_diagonal(relevance: Tensor, offset: int, dim1: int, dim2: int) -> list[Tensor]:
    """The relevance of a value, and of the diagonal that was written into it."""
    part = torch.diagonal(relevance, offset, dim1, dim2)
    return [torch.diagonal_scatter(relevance, torch.zeros_like(part), offset, dim1, dim2), part]


@primitive(linear="first")
def unscatter_select(relevance: Tensor, dim: int, index: int) -> list[Tensor]:
    """The relevance of a value, and of the entry that was written into it."""
    part = relevance.select(dim, index)
    return [torch.select_scatter(relevance, torch.zeros_like(part), dim, index), part]


@primitive(linear="first")
def unsort(pieces: Pieces, output: tuple[Tensor, Tensor], shape: torch.Size, dim: int) -> Tensor:
    """The relevance of sorted or selected values, back where their indices say they come from."""
    values, indices = output
    relevance = _whole([piece for piece in pieces if piece[0] == 0], [values])[0]
    return relevance.new_zeros(shape).scatter_add(dim, indices, relevance)


@primitive
def broadcast_index(index: Tensor, like: Tensor, dim: int) -> Tensor:
    """``index`` as long as ``like`` along every axis but ``dim``."""
    shape = list(like.shape)
    shape[dim] = index.shape[dim]
    return index.expand(shape)


@primitive
def repeated_index(like: Tensor, repeats: Tensor, dim: int, output_size: int | None = None) -> Tensor:
    """Each position along ``dim``, as often as ``repeats`` says."""
    positions = torch.arange(like.shape[dim], device=like.device)
    counts = repeats.expand(positions.shape) if repeats.numel() == 1 else repeats
    return torch.repeat_interleave(positions, counts, output_size=output_size)


@primitive
def pair_rows(like: Tensor, place: int) -> Tensor:
    """The first rows (``place`` 0) or the second ones (1) of all pairs of rows, in order."""
    return torch.triu_indices(len(like), len(like), 1, device=like.device)[place]


@primitive
def strided_places(like: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """Which elements of a contiguous tensor ``as_strided`` takes, one behind the other."""
    places = torch.full([1] * len(size), offset, device=like.device)
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        along = torch.arange(length, device=like.device) * step
        places = places + along.reshape([-1 if other == axis else 1 for other in range(len(size))])
    return places.flatten()


@primitive(linear="first")
def undiagonal(relevance: Tensor, shape: torch.Size, offset: int, dim1: int, dim2: int) -> Tensor:
    """Zeros of ``shape``, with the diagonal filled in."""
    return torch.diagonal_scatter(relevance.new_zeros(shape), relevance, offset, dim1, dim2)
