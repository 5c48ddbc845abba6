"""How the relevance of a sum is shared between its two terms.

The terms are called skip and residual, as in a residual block; what is said here is symmetric in them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxlrp.steps.declaration import InPlace, primitive
from fxlrp.steps.memory import blocks, has_rows, takes
from fxlrp.steps.primitives import denominator_into, divide, stabilize


@primitive
def ratio(
    skip: Tensor, residual: Tensor, skip_support: Tensor | None = None, residual_support: Tensor | None = None
) -> Tensor:
    """``|h_s| / (|h_m| + |h_s|)``; 0/0 is a half, or whole for the operand that carries signal, and ∞/∞ is a half."""
    numerator = skip.abs()
    total = numerator + residual.abs()
    undecided = total == 0
    # An operand of zeros receives exactly that: a tiny share would turn into denormal numbers, on which CPUs are slow.
    share = (numerator / total.masked_fill(undecided, 1)).masked_fill(numerator.isinf(), 0.5)
    if skip_support is None and residual_support is None:
        return share.masked_fill(undecided, 0.5)
    ours = torch.ones_like(skip) if skip_support is None else skip_support
    theirs = torch.ones_like(residual) if residual_support is None else residual_support
    return torch.where(undecided, 0.5 * (1 + ours - theirs), share)


@primitive(reads=True)
def ratio_split_into(
    relevance: Tensor, skip: Tensor, residual: Tensor,
    skip_support: Tensor | None = None, residual_support: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`ratio_split`, into ``relevance`` and ``residual``."""
    if skip_support is not None or residual_support is not None:
        return ratio_split(relevance, skip, residual, skip_support, residual_support)
    if not (takes(relevance, skip) and takes(residual, skip)):
        if not (has_rows(relevance) and relevance.shape == skip.shape == residual.shape):
            return ratio_split(relevance, skip, residual)
        to_skip = relevance * ratio(skip, residual)
        return to_skip, relevance.sub_(to_skip)
    for r, s, m in blocks(relevance, skip, residual):
        total = s.abs().add_(m.abs_())
        to_skip = torch.abs(s, out=m).div_(total).nan_to_num_(nan=0.5).mul_(r)  # 0/0 and ∞/∞ are a half
        r.sub_(to_skip)
    return residual, relevance


@primitive(linear="first", fresh=True, several=True, writes_into=InPlace(ratio_split_into, writes=(0, 2)))
def ratio_split(
    relevance: Tensor, skip: Tensor, residual: Tensor,
    skip_support: Tensor | None = None, residual_support: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Relevance by :func:`ratio`: what skip and residual receive."""
    to_skip = relevance * ratio(skip, residual, skip_support, residual_support)
    return to_skip, relevance - to_skip


@primitive(linear="first", fresh=True, several=True)
def gamma_split(relevance: Tensor, skip: Tensor, residual: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Relevance in proportion to the terms, those with the sign of the sum counting 1 + γ times.

    0/0 is a half, and so is ∞/∞: a score that is masked with −∞ hands on what it gets, which is nothing, as a number.
    """
    positive = skip + residual >= 0
    numerator, other = (torch.where((h >= 0) == positive, h * (1 + gamma), h) for h in (skip, residual))
    total = numerator + other
    undecided = total == 0
    share = (numerator / total.masked_fill(undecided, 1)).masked_fill(undecided | numerator.isinf(), 0.5)
    to_skip = relevance * share
    return to_skip, relevance - to_skip


@primitive(reads=True)
def signed_split_into(relevance: Tensor, skip: Tensor, residual: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """:func:`signed_split`, into ``relevance``."""
    if not (takes(relevance, skip) and takes(relevance, residual)):
        return signed_split(relevance, skip, residual, epsilon)
    to_skip = torch.empty_like(skip)
    for r, s, m, share in blocks(relevance, skip, residual, to_skip):
        endless = torch.add(s, m, out=share).isinf()
        total = share.masked_fill_(share == 0, math.inf).masked_fill_(endless, 2)
        r.div_(denominator_into(total, True, epsilon))
        torch.mul(r, s.masked_fill(endless, 1), out=share)
        r.mul_(m.masked_fill(endless, 1))
    return to_skip, relevance


@primitive(linear="first", fresh=True, several=True, writes_into=InPlace(signed_split_into))
def signed_split(relevance: Tensor, skip: Tensor, residual: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Relevance in proportion to the terms of the sum: what skip and residual receive; terms of ±∞ are as 1 to 1.

    A sum of exactly zero, such as that of a value and its own negative, hands nothing on: shares as large as
    ``1 / epsilon`` would cancel behind it, and leave their rounding.
    """
    skip, residual = _in_numbers(skip, residual)
    total = skip + residual
    s = divide(relevance, total.masked_fill(total == 0, math.inf), True, epsilon)
    return s * skip, s * residual


@primitive(linear="first")
def kept_by_stabilizer(relevance: Tensor, skip: Tensor, residual: Tensor, epsilon: float) -> Tensor:
    """What :func:`signed_split` gives to neither."""
    skip, residual = _in_numbers(skip, residual)
    total = skip + residual
    kept = divide(relevance, total, True, epsilon) * (stabilize(total, epsilon) - total)
    return torch.where(total == 0, relevance, kept)


def _in_numbers(skip: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The terms, and ones where their sum is ±∞, as that of a score that is masked."""
    endless = (skip + residual).isinf()
    return skip.masked_fill(endless, 1), residual.masked_fill(endless, 1)
