"""Values sampled at places, and put back to places: linear in the image, the places held constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight
from fxlrp.steps.pooling import changed_lobes, leaves_sizes_free, only
from fxlrp.steps.separable import SeparableOperation, by_axis_transpose

aten = torch.ops.aten

def _modes(mode: int, padding: int) -> tuple[str, str]:
    return ("bilinear", "nearest")[mode], ("zeros", "border", "reflection")[padding]


@primitive
def grid_sample(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """``F.grid_sample`` with ATen's numbers for the modes."""
    return F.grid_sample(x, grid, *_modes(mode, padding), align_corners)


@primitive(linear="first")
def grid_sample_transpose(s: Tensor, x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """The transpose of :func:`grid_sample` in the image, in the shape of ``x``."""
    # Not torch.func.vjp: what an export makes of it holds tensors of the example.
    backward = (aten.grid_sampler_2d_backward, aten.grid_sampler_3d_backward)[x.dim() - 4]
    transposed: Tensor = backward(s, x, grid, mode, padding, align_corners, [True, False])[0]
    return transposed


@primitive(linear="first")
def outside_of_image(s: Tensor, x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """The relevance of what was sampled outside of the image, where it is zero."""
    return s * (1 - grid_sample(torch.ones_like(x), grid, mode, padding, align_corners))


@primitive(linear="first")
def unpool_transpose(relevance: Tensor, x: Tensor, indices: Tensor, output: Tensor) -> Tensor:
    """The relevance of values that were put to the places of ``indices``, counted within each channel.

    Where windows overlap, several may be put to one place: those that stand there share.
    """
    places, values = indices.flatten(2), x.flatten(2)
    stands = (output.flatten(2).gather(2, places) == values).to(relevance.dtype)
    shared = torch.zeros_like(relevance.flatten(2)).scatter_add(2, places, stands).gather(2, places)
    shares = relevance.flatten(2).gather(2, places) * stands / shared.clamp(min=1)
    return shares.reshape(indices.shape)


@primitive(linear="first")
def unpool_rest(relevance: Tensor, indices: Tensor) -> Tensor:
    """The relevance of the zeros to which no value was put."""
    return relevance.flatten(2).scatter(2, indices.flatten(2), 0).reshape(relevance.shape)


@dataclass(frozen=True)
class Turned(FixedOperation):
    """``operation`` with rows for columns, and columns for rows."""

    operation: LinearOperation

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return self.operation.apply(x.mT, weight).mT

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return self.operation.transpose(s.mT, weight, x.mT).mT


@dataclass(frozen=True)
class Resize(SeparableOperation):
    """Interpolation with antialiasing; ``name`` is ATen's, such as ``"_upsample_bilinear2d_aa"``."""

    name: str
    size: list[int] | None
    align_corners: bool
    scales: list[float] | None

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return resize(x, self.name, self.size, self.align_corners, self.scales)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return resize_transpose(s, x, self.name, self.size, self.align_corners, self.scales)

    def along(self, axis: int) -> LinearOperation:
        if axis == 0:  # torch gives the first row of an image that is one wide, again and again
            size = None if self.size is None else self.size[::-1]
            scales = None if self.scales is None else self.scales[::-1]
            return Turned(replace(self, size=size, scales=scales).along(1))
        size = None if self.size is None else only(axis, self.size)
        return replace(self, size=size, scales=None if self.scales is None else only(axis, self.scales, 1.0))

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        return changed_lobes(self, change) if "bicubic" in self.name else super().changed(weight, change)


@primitive
def resize(x: Tensor, name: str, size: list[int] | None, align_corners: bool, scales: list[float] | None) -> Tensor:
    """Interpolation by ATen's function ``name``."""
    return getattr(aten, name).vec(x, size, align_corners, scales)


@primitive(linear="first")
def resize_transpose(
    s: Tensor, x: Tensor, name: str, size: list[int] | None, align_corners: bool, scales: list[float] | None
) -> Tensor:
    """The transpose of :func:`resize`, in the shape of ``x``."""
    if leaves_sizes_free(x):  # an export would keep tensors of vjp's own
        return by_axis_transpose(s, x, Resize(name, size, align_corners, scales), "same")
    return torch.func.vjp(lambda image: resize(image, name, size, align_corners, scales), x)[1](s)[0]


@primitive
def pool_indices(x: Tensor, dims: int, *form: Any) -> Tensor:
    """The index of each window's largest element, within its channel."""
    pool = (F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)[dims - 1]
    return pool(x, *form)[1]
