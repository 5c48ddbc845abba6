"""Reductions as linear operations: sums, means, and statistics with each element's part in them held constant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight


@primitive
def reduce(x: Tensor, dim: list[int] | None, keepdim: bool, power: int) -> Tensor:
    """The sum over ``dim`` of ``x`` times ``count^(−power)``, the count being that of the elements summed."""
    total = x.sum(dim=dim, keepdim=keepdim)
    return total / (x.numel() // total.numel()) ** power


@primitive(linear="first")
def reduce_transpose(s: Tensor, x: Tensor, dim: list[int] | None, keepdim: bool, power: int) -> Tensor:
    """The transpose of :func:`reduce`, in the shape of ``x``."""
    axes = sorted(d % x.dim() for d in (range(x.dim()) if dim is None else dim))
    if not keepdim:
        for axis in axes:
            s = s.unsqueeze(axis)
    if power:
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        s = s / count**power
    return s.expand(x.shape)


@dataclass(frozen=True)
class Reduction(FixedOperation):
    """The sum over ``dim`` (``None``: every axis), each element times ``count^(−power)``: of power 1 the mean."""

    dim: list[int] | None
    keepdim: bool = False
    power: int = 1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        if self.power > 1:
            return reduce(x, self.dim, self.keepdim, self.power)
        return (torch.mean if self.power else torch.sum)(x, dim=self.dim, keepdim=self.keepdim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return reduce_transpose(s, x, self.dim, self.keepdim, self.power)

    def flat(self) -> LinearOperation:
        return replace(self, power=0)

    def squared(self) -> LinearOperation:
        return replace(self, power=2 * self.power)


@dataclass(frozen=True)
class WeightedReduction(LinearOperation):
    """The sum over ``dim`` of ``x`` times weights of its own shape: a statistic, each element's part in it held."""

    dim: list[int] | None
    keepdim: bool = False

    held = True

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return torch.sum(x * weight, dim=self.dim, keepdim=self.keepdim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return weight * reduce_transpose(s, x, self.dim, self.keepdim, 0)


@primitive
def norm_weights(x: Tensor, order: float) -> Tensor:
    """``w`` with ``Σ x_i w_i = Σ |x_i|^p``."""
    if order == 2:
        return x
    weights = x.sign() * x.abs() ** (order - 1)
    return weights if order >= 1 else weights.masked_fill(x == 0, 0)


@primitive
def deviation_weights(x: Tensor, dim: list[int] | None) -> Tensor:
    """``w`` with ``Σ x_i w_i = Σ (x_i − mean)²``."""
    return x - x.mean(dim=dim, keepdim=True)


@primitive
def soft_weights(x: Tensor, dim: list[int]) -> Tensor:
    """The softmax over the axes ``dim``: each element's part in their ``logsumexp``."""
    return (x - x.logsumexp(dim=dim, keepdim=True)).exp()


@primitive
def determinant_weights(matrix: Tensor) -> Tensor:
    """``w`` with ``Σ a_ij w_ij = det A``: the cofactors over the number of rows, along each of which they give it.

    Where there is no inverse to take them from, and the determinant is zero, they are taken to be zero.
    """
    inverse, failed = torch.linalg.inv_ex(matrix)
    determinant = torch.linalg.det(matrix) / matrix.shape[-1]
    return torch.where(failed[..., None, None] != 0, 0, determinant[..., None, None] * inverse.mT)


@dataclass(frozen=True)
class CumulativeSum(FixedOperation):
    """The running sum along an axis."""

    dim: int

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return x.cumsum(self.dim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return s.flip(self.dim).cumsum(self.dim).flip(self.dim)
