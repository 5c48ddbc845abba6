"""Functions of several elements as sums of them, each times a weight that is made of the signal and held constant.

Every weight is chosen so that the weighted elements add up to what the function gives (or, as for a logarithm of a sum
of exponentials, stand in the relations in which they decide it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LinearOperation, Weight


@dataclass(frozen=True)
class HeldMap(LinearOperation):
    """A square matrix of weights along the axis ``dim``, one for each position on the others.

    The weights are (..., results, elements), the axis ``dim`` of the operand being taken out of the front.
    """

    dim: int

    held = True

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return held_map(x, weight, self.dim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return held_map_transpose(s, weight, self.dim)


@primitive
def held_map(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """``Σ_i w_ti x_i`` along the axis ``dim``."""
    return (weight @ x.movedim(dim, -1).unsqueeze(-1)).squeeze(-1).movedim(-1, dim)


@primitive(linear="first")
def held_map_transpose(s: Tensor, weight: Tensor, dim: int) -> Tensor:
    """The transpose of :func:`held_map`."""
    return held_map(s, weight.mT, dim)


def _safe_inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0, 1 / torch.where(x == 0, 1, x))


@primitive
def product_weights(x: Tensor, dim: int | None) -> Tensor:
    """``w`` with ``x_i w_i = Π x / n``: every factor has an equal part in a product."""
    dim = 0 if dim is None else dim
    return x.prod(dim, keepdim=True) / x.shape[dim] * _safe_inverse(x)


def _running(values: Tensor) -> Tensor:
    """Which elements (columns) a running result (row) is of."""
    size = values.shape[-1]
    return torch.ones(size, size, dtype=values.dtype, device=values.device).tril()


@primitive
def running_product_weights(x: Tensor, dim: int) -> Tensor:
    """``w`` with ``Σ_i w_ti x_i = Π_{i ≤ t} x_i``, every factor having an equal part."""
    along = x.movedim(dim, -1)
    counts = torch.arange(1, along.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return _running(along) * (along.cumprod(-1) / counts).unsqueeze(-1) * _safe_inverse(along).unsqueeze(-2)


@primitive
def running_soft_weights(x: Tensor, dim: int) -> Tensor:
    """The softmax over what came before: each element's part in a running ``logsumexp``."""
    along = x.movedim(dim, -1)
    return (along.unsqueeze(-2) - along.logcumsumexp(-1).unsqueeze(-1)).exp().mul(_running(along)).nan_to_num(0)


@primitive
def quantile_weights(ordered: Tensor, q: Tensor | float, dim: int, interpolation: str) -> Tensor:
    """Weights of ordered elements in their quantile ``q``, in a shape that broadcasts along ``dim``."""
    size = ordered.shape[dim]
    rank = torch.as_tensor(q, dtype=ordered.dtype, device=ordered.device) * (size - 1)
    if interpolation != "linear":
        rank = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}.get(interpolation, _middle)(rank)
    distance = (torch.arange(size, dtype=ordered.dtype, device=ordered.device) - rank).abs()
    shape = [1] * ordered.dim()
    shape[dim] = size
    return (1 - distance).clamp(min=0).reshape(shape)


def _middle(rank: Tensor) -> Tensor:
    return (rank.floor() + rank.ceil()) / 2


@primitive
def rounded_share(x: Tensor, rounded: Tensor) -> Tensor:
    """What a value becomes by rounding, as a share of it; zero where it is zero."""
    return torch.where(x == 0, 0, rounded / torch.where(x == 0, 1, x))
