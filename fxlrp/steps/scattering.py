"""Values written to places: sums of what is scattered, and the transposes that bring relevance back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, Weight

aten = torch.ops.aten


@primitive
def scatter_sum(x: Tensor, like: Tensor, dim: int, index: Tensor) -> Tensor:
    """``scatter_add`` of ``x`` onto zeros of the shape of ``like``."""
    return x.new_zeros(like.shape).scatter_add(dim, index, x)


@primitive(linear="first")
def scatter_sum_transpose(s: Tensor, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """The transpose of :func:`scatter_sum`, in the shape of ``x``; what has no index was not scattered."""
    return _padded(s.gather(dim, index), x)


def _padded(back: Tensor, x: Tensor) -> Tensor:
    """With zeros in the shape of ``x``, whose first elements alone have an index."""
    if back.shape == x.shape:
        return back
    pads = [p for size, whole in zip(reversed(back.shape), reversed(x.shape), strict=True) for p in (0, whole - size)]
    return aten.constant_pad_nd(back, pads)


@dataclass(frozen=True)
class ScatterSum(FixedOperation):
    """The sum, at each place of ``like``, of the elements whose index along ``dim`` says so."""

    like: Tensor
    dim: int
    index: Tensor

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return scatter_sum(x, self.like, self.dim, self.index)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return scatter_sum_transpose(s, x, self.dim, self.index)


@primitive
def index_sum(x: Tensor, like: Tensor, dim: int, index: Tensor) -> Tensor:
    """``index_add`` of ``x`` onto zeros of the shape of ``like``."""
    return x.new_zeros(like.shape).index_add(dim, index, x)


@dataclass(frozen=True)
class IndexSum(FixedOperation):
    """The sum, at each slice of ``like`` along ``dim``, of the slices whose index says so."""

    like: Tensor
    dim: int
    index: Tensor

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return index_sum(x, self.like, self.dim, self.index)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return torch.index_select(s, self.dim, self.index)


@primitive
def placed_sum(x: Tensor, like: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """``index_put`` of ``x`` onto zeros of the shape of ``like``, what meets added up."""
    return aten.index_put(x.new_zeros(like.shape), indices, x, True)


@primitive(linear="first")
def placed_sum_transpose(s: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """The transpose of :func:`placed_sum`, in the shape of ``x``."""
    return aten.index(s, indices).sum_to_size(x.shape)


@dataclass(frozen=True)
class PlacedSum(FixedOperation):
    """The sum, at each place of ``like``, of the elements whose indices say so."""

    like: Tensor
    indices: Sequence[Tensor | None]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return placed_sum(x, self.like, self.indices)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return placed_sum_transpose(s, x, self.indices)


@primitive(linear="first")
def unscatter(relevance: Tensor, dim: int, index: Tensor, source: Any) -> list[Tensor]:
    """The relevance of a value, and of what was scattered over it; ``source`` gives the shape of that.

    Of elements that were written to one place, the last one stands there.
    """
    numbers = torch.arange(index.numel(), device=index.device).reshape(index.shape)
    last = torch.zeros(relevance.shape, dtype=torch.long, device=index.device).scatter(dim, index, numbers)
    back = relevance.gather(dim, index).masked_fill(last.gather(dim, index) != numbers, 0)
    return [relevance.scatter(dim, index, 0), _padded(back, source)]


@primitive(linear="first")
def unscatter_value(relevance: Tensor, dim: int, index: Tensor) -> Tensor:
    """The relevance of a value where no number was scattered over it."""
    return relevance.scatter(dim, index, 0)


@primitive(linear="first")
def uncopy_index(relevance: Tensor, dim: int, index: Tensor) -> list[Tensor]:
    """The relevance of a value, and of the slices that were written over some of its own; the last one stands."""
    numbers = torch.arange(index.numel(), device=index.device)
    last = torch.zeros(relevance.shape[dim], dtype=torch.long, device=index.device).index_copy(0, index, numbers)
    stands = (last[index] == numbers).reshape([-1 if d == dim % relevance.dim() else 1 for d in range(relevance.dim())])
    return [relevance.index_fill(dim, index, 0), relevance.index_select(dim, index) * stands]


@primitive(linear="first")
def unput(relevance: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> list[Tensor]:
    """The relevance of a value, and of what was written to the places of ``indices``; the last one stands."""
    rest, back = aten.index_put(relevance, indices, relevance.new_zeros(())), aten.index(relevance, indices)
    numbers = torch.arange(back.numel(), device=back.device).reshape(back.shape)
    last = aten.index_put(torch.zeros(relevance.shape, dtype=torch.long, device=back.device), indices, numbers)
    return [rest, back.masked_fill(aten.index(last, indices) != numbers, 0).sum_to_size(values.shape)]


@primitive(linear="first")
def unscatter_mask(relevance: Tensor, mask: Tensor, source: Tensor) -> list[Tensor]:
    """The relevance of a value, and of the elements that were written, one after the other, where ``mask`` holds."""
    mask = mask.expand(relevance.shape)
    order = (mask.flatten().cumsum(0) - 1).clamp(min=0)
    written = torch.where(mask, relevance, 0).flatten()
    back = relevance.new_zeros(source.numel()).index_add(0, order, written)
    return [relevance.masked_fill(mask, 0), back.reshape(source.shape)]


@primitive
def arrivals(like: Tensor, dim: int, index: Tensor) -> Tensor:
    """How many elements are scattered to each place of ``like``, in its dtype."""
    ones = torch.ones(index.shape, dtype=like.dtype, device=like.device)
    return torch.zeros_like(like).scatter_add(dim, index, ones)


@primitive
def along(index: Tensor, like: Tensor, dim: int) -> Tensor:
    """The index of slices along ``dim`` as one of elements, in the shape of ``like``."""
    return index.reshape([-1 if d == dim % like.dim() else 1 for d in range(like.dim())]).expand(like.shape)


@primitive
def extreme_parts(x: Tensor, like: Tensor, dim: int, index: Tensor, reduce: str) -> Tensor:
    """Each element's part in the largest (smallest) that is scattered to its place: equal ones share."""
    part = x if x.shape == index.shape else x[tuple(slice(size) for size in index.shape)]
    extreme = torch.zeros_like(like).scatter_reduce(dim, index, part, reduce, include_self=False)
    chosen = (part == extreme.gather(dim, index)).to(x.dtype)
    return chosen / torch.zeros_like(like).scatter_add(dim, index, chosen).gather(dim, index)


@primitive
def product_parts(x: Tensor, like: Tensor, dim: int, index: Tensor) -> Tensor:
    """Weights with which the factors scattered to a place sum to their product, each by an equal part."""
    product = torch.ones_like(like).scatter_reduce(dim, index, x, "prod").gather(dim, index)
    count = arrivals(like, dim, index).gather(dim, index)
    return torch.where(x == 0, 0, product / (count * torch.where(x == 0, 1, x)))
