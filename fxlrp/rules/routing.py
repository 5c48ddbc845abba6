"""Moving relevance back: the transpose of every operation that only moves values.

Each function takes the relevance of the moved value and the operand(s), and returns the
relevance of the operand(s).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.rules.primitives import primitive

aten = torch.ops.aten


@primitive
def unreshape(relevance: Tensor, x: Tensor) -> Tensor:
    """Back to the shape of ``x``."""
    return relevance.reshape(x.shape)


@primitive
def unpermute(relevance: Tensor, dims: Sequence[int]) -> Tensor:
    """The inverse of ``permute(dims)``."""
    inverse = [0] * len(dims)
    for to, origin in enumerate(dims):
        inverse[origin % len(dims)] = to
    return relevance.permute(inverse)


@primitive
def unslice(relevance: Tensor, x: Tensor, dim: int, start: int | None, end: int | None, step: int) -> Tensor:
    """Zeros in the shape of ``x``, with the slice filled in."""
    return torch.slice_scatter(torch.zeros_like(x), relevance, dim, start, end, step)


@primitive
def unselect(relevance: Tensor, x: Tensor, dim: int, index: int) -> Tensor:
    """Zeros in the shape of ``x``, with the selected entry filled in."""
    return torch.select_scatter(torch.zeros_like(x), relevance, dim, index)


@primitive
def unpad(relevance: Tensor, pad: Sequence[int]) -> Tensor:
    """Cut constant padding off (or put zeros where ``pad`` was negative)."""
    return aten.constant_pad_nd(relevance, [-p for p in pad])


@primitive
def unexpand(relevance: Tensor, x: Tensor) -> Tensor:
    """Sum over the copies that ``expand`` made."""
    return relevance.sum_to_size(x.shape)


@primitive
def unrepeat(relevance: Tensor, x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Sum over the copies that ``repeat`` made."""
    shape = [1] * (len(repeats) - x.dim()) + list(x.shape)
    parted = relevance.reshape([n for pair in zip(repeats, shape, strict=True) for n in pair])
    return parted.sum(dim=tuple(range(0, 2 * len(repeats), 2))).reshape(x.shape)


@primitive
def uncat(relevance: Tensor, tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    """One piece for each of the concatenated ``tensors``."""
    pieces, start = [], 0
    for tensor in tensors:
        size = tensor.shape[dim]
        pieces.append(relevance.narrow(dim, start, size))
        start += size
    return pieces


@primitive
def unsplit(parts: dict[int, Tensor], values: Sequence[Tensor], dim: int) -> Tensor:
    """The pieces of a split joined again; a piece that nobody used has no relevance."""
    return torch.cat(_whole(parts, values), dim)


def _whole(parts: dict[int, Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    count = len(values)
    named = {index % count: part for index, part in parts.items()}  # an index may count from the end
    return [named[i] if i in named else torch.zeros_like(value) for i, value in enumerate(values)]


@primitive
def unstack(relevance: Tensor, dim: int) -> list[Tensor]:
    """One slice for each of the stacked tensors."""
    return list(relevance.unbind(dim))


@primitive
def rebind(parts: dict[int, Tensor], values: Sequence[Tensor], dim: int) -> Tensor:
    """The slices of ``unbind`` stacked again; a slice that nobody used has no relevance."""
    return torch.stack(_whole(parts, values), dim)


@primitive
def unroll(relevance: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Roll back."""
    return torch.roll(relevance, [-s for s in shifts], list(dims))


@primitive
def unpad_border(relevance: Tensor, x: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """Add reflected or replicated borders (``mode`` as ATen names it) back onto their origin."""
    backward = getattr(aten, f"{mode}_pad{len(pad) // 2}d_backward")
    return backward(relevance, x, pad)


@primitive
def unchannel_shuffle(relevance: Tensor, groups: int) -> Tensor:
    """The inverse of a channel shuffle: a shuffle with the other factor."""
    return torch.channel_shuffle(relevance, relevance.shape[1] // groups)
