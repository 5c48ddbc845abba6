"""Max pooling, maxima and minima: relevance to what was chosen, and linear operations over the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.pooling import AdaptiveAveragePool, AveragePool, WindowSum
from fxlrp.steps.reduction import Reduction

_MAX_POOL_INDICES: dict[int, Any] = {
    1: F.max_pool1d_with_indices,
    2: F.max_pool2d_with_indices,
    3: F.max_pool3d_with_indices,
}
_ADAPTIVE_INDICES: dict[int, Any] = {
    1: F.adaptive_max_pool1d_with_indices,
    2: F.adaptive_max_pool2d_with_indices,
    3: F.adaptive_max_pool3d_with_indices,
}


@primitive(linear="first")
def to_winners(relevance: Tensor, x: Tensor, indices: Tensor, axes: int) -> Tensor:
    """Each window's relevance to the element that it selected in the last ``axes``, summed where windows overlap."""
    flat = relevance.new_zeros(*x.shape[:-axes], x.shape[-axes:].numel())
    return flat.scatter_add(-1, indices.flatten(-axes), relevance.flatten(-axes)).reshape(x.shape)


@primitive(linear="none")
def tiled(x: Tensor, relevance: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """``x``, after a check that tiles of size ``kernel`` meet the pool's output one to one."""
    tiles = tuple(size // k for size, k in zip(x.shape[2:], kernel, strict=False))
    if len(kernel) != x.dim() - 2 or tiles != tuple(relevance.shape[2:]):
        size = " × ".join(map(str, kernel))
        raise InputError(
            f"averages of {size} cannot stand for this max pool: it makes {tuple(relevance.shape[2:])} of "
            f"{tuple(x.shape[2:])}, they make {tiles}. The rules of the released code need a size that halves evenly "
            "and a pool that halves; choose another input size, or override the rule of the pool with WindowAverage()"
        )
    return x


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over ``len(kernel)`` axes."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool = False

    def indices(self, x: Tensor) -> Tensor:
        """The flat index of each window's winner."""
        pool = _MAX_POOL_INDICES[len(self.kernel)]
        return pool(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)[1]

    def to_winners(self, relevance: Tensor, x: Tensor) -> Tensor:
        """Each window's relevance to its winner."""
        return to_winners(relevance, x, self.indices(x), len(self.kernel))

    def windows(self) -> LinearOperation:
        """A linear operation over the same windows."""
        if any(d != 1 for d in self.dilation):
            return WindowSum(self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return AveragePool(self.kernel, self.stride, self.padding, self.ceil_mode)


@dataclass(frozen=True)
class AdaptiveMaxPool:
    """Adaptive max pooling to ``size`` (one entry per axis)."""

    size: list[int]

    def indices(self, x: Tensor) -> Tensor:
        """The flat index of each window's winner."""
        return _ADAPTIVE_INDICES[len(self.size)](x, self.size)[1]

    def to_winners(self, relevance: Tensor, x: Tensor) -> Tensor:
        """Each window's relevance to its winner."""
        return to_winners(relevance, x, self.indices(x), len(self.size))

    def windows(self) -> LinearOperation:
        """A linear operation over the same windows."""
        return AdaptiveAveragePool(self.size)


@primitive(linear="first")
def to_largest(relevance: Tensor, x: Tensor, dim: Sequence[int], keepdim: bool, largest: bool) -> Tensor:
    """Each maximum's (or minimum's) relevance to the element over ``dim`` that it is; equal ones share."""
    axes = sorted(d % x.dim() for d in dim) or list(range(x.dim()))
    if not keepdim:
        for axis in axes:
            relevance = relevance.unsqueeze(axis)
    chosen = (x == (x.amax(axes, keepdim=True) if largest else x.amin(axes, keepdim=True))).to(relevance.dtype)
    return relevance * chosen / chosen.sum(axes, keepdim=True)


@dataclass(frozen=True)
class Extremum:
    """The maximum, or the minimum, over the axes ``dim``."""

    dim: list[int]
    keepdim: bool = False
    largest: bool = True

    def to_winners(self, relevance: Tensor, x: Tensor) -> Tensor:
        """Each extremum's relevance to the element that it is."""
        return to_largest(relevance, x, self.dim, self.keepdim, self.largest)

    def windows(self) -> LinearOperation:
        """The mean over the same axes."""
        return Reduction(self.dim or None, self.keepdim)


Pool = MaxPool | AdaptiveMaxPool | Extremum


@primitive(linear="first")
def winners(relevance: Any, x: Any, output: Any) -> Any:
    """The part of ``relevance`` where ``x`` is what was chosen."""
    return relevance * (x == output)
