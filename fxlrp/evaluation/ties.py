"""Values that tie: runs of equal elements in what is sorted."""

from __future__ import annotations

import torch
from torch import Tensor


def changes(ordered: Tensor) -> Tensor:
    """Where a new value begins in sorted rows, (batch, n)."""
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return begins


def first_places(ordered: Tensor) -> Tensor:
    """The place of the first element of the same value, for each of sorted rows, (batch, n)."""
    place = torch.arange(ordered.shape[1], device=ordered.device).expand(ordered.shape)
    return torch.where(changes(ordered), place, 0).cummax(dim=1).values


def last_places(ordered: Tensor) -> Tensor:
    """The place of the last element of the same value, for each of sorted rows, (batch, n)."""
    return ordered.shape[1] - 1 - first_places(ordered.flip(1)).flip(1)


def tied_share(maps: Tensor) -> Tensor:
    """The share of elements whose value another one has as well: (batch, ...) to (batch,)."""
    ordered = maps.flatten(1).sort(dim=1).values
    return (first_places(ordered) != last_places(ordered)).double().mean(dim=1)
