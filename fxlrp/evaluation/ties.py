"""Values that tie: runs of equal elements in what is sorted."""

from __future__ import annotations

import torch
from torch import Tensor


def first_equal(ordered: Tensor) -> Tensor:
    """For each element of sorted rows, (batch, n), the position of the first one of the same value."""
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    positions = torch.arange(ordered.shape[1], device=ordered.device).expand(ordered.shape)
    return torch.where(begins, positions, 0).cummax(dim=1).values


def last_equal(ordered: Tensor) -> Tensor:
    """For each element of sorted rows, (batch, n), the position of the last one of the same value."""
    return ordered.shape[1] - 1 - first_equal(ordered.flip(1)).flip(1)


def tied_share(maps: Tensor) -> Tensor:
    """The share of elements whose value another one has as well: (batch, ...) to (batch,)."""
    ordered = maps.flatten(1).sort(dim=1).values
    return (first_equal(ordered) != last_equal(ordered)).double().mean(dim=1)
