"""Steps in the operators that runtimes of ONNX are fast at.

A runtime takes one pass over memory for each operator, and several for a choice by element (``Where``) and for a
sign. So choices are written as clamps: ``clamp(k z, −1, 1)`` is the sign of ``z`` where ``k`` is as large as a number
can be, and a denominator gets one added where it is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.passes.optimize.transposes import flipped
from fxlrp.steps.pooling import AdaptiveAveragePool, AveragePool
from fxlrp.steps.primitives import primitive, smallest_denominator
from fxlrp.steps.separable import by_axis_transpose


def smallest_normal(dtype: torch.dtype) -> float:
    """The smallest number that is stored in full precision."""
    return float(torch.finfo(dtype).tiny)


def negligible(dtype: torch.dtype) -> float:
    """Halfway, by powers, between the smallest number and one: a divisor that overflows nothing, and adds nothing."""
    return smallest_normal(dtype) ** 0.5


def sign(z: Tensor, factor: float, at_zero: float = 0.0) -> Tensor:
    """``factor`` times the sign of ``z``, and ``at_zero`` where it is zero."""
    steep = z * min(2 * factor / smallest_normal(z.dtype), torch.finfo(z.dtype).max / 4)
    return (steep + at_zero if at_zero else steep).clamp(-factor, factor)


@primitive
def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """``z`` moved away from zero by ``epsilon``, as :func:`fxlrp.steps.primitives.stabilize` does."""
    return z + sign(z, epsilon, at_zero=epsilon)


@primitive
def divide_stabilized(relevance: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """``relevance`` over the stabilised ``z``."""
    return relevance / stabilized(z, epsilon)


@primitive
def divide_nonzero(relevance: Tensor, z: Tensor) -> Tensor:
    """``relevance / z`` where ``z`` is a sum of contributions none of which is negative.

    Where it vanishes all of them do, and what the quotient is does not matter, because it is multiplied by them. It
    must not be large: convolutions by Winograd or Fourier round all of a tile to its largest value.
    """
    return relevance / nonzero(z)


def nonzero(z: Tensor) -> Tensor:
    """``z``, nowhere negative, and one in place of what has vanished."""
    return z + (z <= smallest_denominator(z.dtype)).to(z.dtype)


@primitive
def favoured_quotient(relevance: Tensor, z: Tensor, total: Tensor, factor: float, epsilon: float) -> Tensor:
    """What the γ rule shares out: ``relevance / (factor |z| + total)``, and zero where ``z`` is exactly zero."""
    denominator = total + z.abs() * factor
    denominator = denominator + epsilon if epsilon else nonzero(denominator)
    where = sign(z, 1.0)
    return relevance / denominator * where * where


@primitive
def times_sign(value: Tensor, z: Tensor, factor: float = 1.0) -> Tensor:
    """``value`` times ``factor`` and the sign of ``z``."""
    return value * sign(z, factor)


@primitive
def ratio_halves(
    relevance: Tensor, skip: Tensor, residual: Tensor, skip_support: Any = None, residual_support: Any = None
) -> tuple[Tensor, Tensor]:
    """Relevance in proportion to the magnitudes of two terms, as :func:`fxlrp.steps.addition.ratio_split` does."""
    least = negligible(skip.dtype)
    ours, theirs = skip.abs().clamp(min=least), residual.abs().clamp(min=least)
    to_skip = relevance * (ours / (ours + theirs))
    return to_skip, relevance - to_skip


@primitive
def gamma_shares(relevance: Tensor, skip: Tensor, residual: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """As :func:`fxlrp.steps.addition.gamma_split`, with the part of the sum's sign as ``h^± = (h + σ |h|) / 2``.

    Numerator and denominator are then both multiplied by 2 σ / γ: ``k σ h_s + |h_s|``, ``k = 1 + 2 / γ``, and nothing
    cancels in the denominator.
    """
    k, least = 1 + 2 / gamma, negligible(skip.dtype)
    total = skip + residual
    favour = sign(total, k, at_zero=k)
    ours = skip.abs()
    numerator = favour * skip + (ours + least)
    denominator = favour * total + (ours + residual.abs() + 2 * least)
    to_skip = relevance * (numerator / denominator)
    return to_skip, relevance - to_skip


@primitive
def turned_transpose(
    s: Tensor, weight: Tensor, x: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The transpose of a convolution, in the shape of its input ``x``: one with its weights turned round.

    ``padding`` is that in front of each axis; that behind it follows from the shape of ``x``.
    """
    dims = weight.dim() - 2
    s = zeros_between(s, stride)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    front = [r - p for r, p in zip(reach, padding, strict=True)]
    behind = [x.shape[2 + d] - s.shape[2 + d] - front[d] + reach[d] for d in range(dims)]
    if front != behind or min(front) < 0:
        s = F.pad(s, [side for pair in zip(reversed(front), reversed(behind), strict=True) for side in pair])
        front = [0] * dims
    convolution = getattr(F, f"conv{dims}d")
    return convolution(s, flipped(weight, groups), None, [1] * dims, front, dilation, groups)


def zeros_between(s: Tensor, stride: Sequence[int]) -> Tensor:
    """``s`` with zeros put behind each of its elements: each is repeated, which is fast, and all but one blanked."""
    if all(step == 1 for step in stride):
        return s
    repeated = F.interpolate(s, scale_factor=[float(step) for step in stride], mode="nearest")
    mask = torch.ones((), dtype=s.dtype, device=s.device)
    for d, step in enumerate(stride):
        kept = torch.arange(repeated.shape[2 + d], device=s.device) % step == 0
        mask = mask.unsqueeze(-1) * kept.to(s.dtype)
    return repeated * mask


@primitive
def spaced_fast(parts: Tensor, x: Tensor, stride: list[int]) -> Tensor:
    """Values at the multiples of the stride and zeros between, in the shape of ``x``."""
    whole = zeros_between(parts, stride)
    missing = [size - given for size, given in zip(x.shape[2:], whole.shape[2:], strict=True)]
    return F.pad(whole, [side for size in reversed(missing) for side in (0, size)]) if any(missing) else whole


@primitive
def ones_of_one_item(x: Tensor) -> Tensor:
    """Ones like one item of ``x``, (1, ...)."""
    return torch.ones(1, *x.shape[1:], dtype=x.dtype, device=x.device)


@primitive
def average_back(
    s: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Tensor:
    """The transpose of average pooling: of a convolution if all windows have one divisor, else with matrices."""
    dims = len(kernel)
    if not ceil_mode and (count_include_pad or not any(padding)):
        channels, number = x.shape[1], divisor or prod(kernel)
        weight = torch.full((channels, 1, *kernel), 1 / number, dtype=s.dtype, device=s.device)
        return turned_transpose(s, weight, x, stride, padding, [1] * dims, channels)
    pool = AveragePool(kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    return by_axis_transpose(s, x, pool, "same")


@primitive
def adaptive_by_axis(s: Tensor, x: Tensor, dims: int) -> Tensor:
    """The transpose of adaptive average pooling as products with matrices."""
    return by_axis_transpose(s, x, AdaptiveAveragePool(list(s.shape[2:])), "same")
