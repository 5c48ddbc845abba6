"""How far two outputs are apart, and how far rounding alone may take them."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of ``b``; 0 where both are equal, NaN for NaN included."""
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    a, b = a.double() if not a.is_complex() else a, b.double() if not b.is_complex() else b
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    worst = float((a - b).abs()[~same].max())
    return worst / scale if scale else float("inf") if worst != worst or worst > 0 else 0.0


def last_digit(tensor: Tensor) -> float:
    """The relative size of the last digit of a tensor's type; 0 for whole numbers."""
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0
