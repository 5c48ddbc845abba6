"""Maps at their place in a photograph: of the part that a model sees, and of windows that cover all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, pi

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangle of a photograph, in its pixels; it may reach beyond it where the preprocessing pads.

    Attributes:
        left, top, right, bottom: its edges.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def rounded(self) -> tuple[int, int, int, int]:
        """The same in whole pixels, as Pillow takes it."""
        return round(self.left), round(self.top), round(self.right), round(self.bottom)

    def within(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of it that lies in a photograph of this width and height, in whole pixels."""
        left, top, right, bottom = self.rounded
        return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


def placed(heat: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """A map of what the model got, at its place in the photograph: (height, width), zero elsewhere, its sum kept.

    Args:
        heat: (rows, columns), relevance.
        box: of :func:`box_of`.
        size: width and height of the photograph.
    """
    left, top, right, bottom = box.rounded
    width, height = size
    large = F.interpolate(heat[None, None].float(), (bottom - top, right - left), mode="bilinear", antialias=True)[0, 0]
    whole = heat.new_zeros(height, width, dtype=torch.float32)
    inside = large[max(0, -top) : height - top, max(0, -left) : width - left]
    whole[max(0, top) : max(0, top) + inside.shape[0], max(0, left) : max(0, left) + inside.shape[1]] = inside
    whole = whole.double() * (heat.numel() / large.numel())  # pixels are of another size there
    # What resizing rounds off, and what lay beyond the photograph, goes to all pixels by their magnitude: a factor
    # for all would have no bound, nor a sign, where red and blue nearly cancel.
    magnitude = whole.abs()
    lacking = (heat.double().sum() - whole.sum()) / magnitude.sum().clamp(min=1e-300)
    return (whole + lacking * magnitude).float()


class Tiling:
    """Windows over a photograph, each half over the next, and their maps joined to one without seams.

    Where windows overlap, the map passes smoothly from one to the next: at every pixel their weights add up to 1, and
    fall towards a window's edges. Two factors for the whole photograph, one for each sign, then give back what the
    weights took, so that the joined map adds up to the sum over all windows.

    Attributes:
        windows: boxes as large as the one given, evenly spaced, from the top left.
    """

    def __init__(self, size: tuple[int, int], box: Box) -> None:
        """Lay windows.

        Args:
            size: width and height of the photograph.
            box: what the model gets of it.
        """
        width, height = box.right - box.left, box.bottom - box.top
        columns, rows = _starts(size[0], width), _starts(size[1], height)
        self.size = size
        self.windows = [Box(left, top, left + width, top + height) for top in rows for left in columns]
        across, down = _weights(columns, width, size[0]), _weights(rows, height, size[1])
        self._weights = [(one, other) for one in down for other in across]
        self._parts = torch.zeros(2, size[1], size[0], dtype=torch.float64)  # relevance for and against
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, number: int, heat: Tensor) -> None:
        """Add the map of a window.

        Args:
            number: of the window.
            heat: (rows, columns), relevance.
        """
        whole = placed(heat, self.windows[number], self.size).double()
        down, across = self._weights[number]
        parts = torch.stack([whole.clamp(min=0), -whole.clamp(max=0)])
        self._sums += parts.sum((1, 2))
        self._parts += parts * down[:, None] * across

    @property
    def joined(self) -> Tensor:
        """The map of the whole photograph, (height, width): it adds up to what was added."""
        factors = self._sums / self._parts.sum((1, 2)).clamp(min=1e-300)
        speaking_for, against = self._parts * factors[:, None, None]
        return (speaking_for - against).float()


_LEAST = 1e-3
"""The weight of a window at its edge, so that its relevance is somewhere wherever it lies."""


def _starts(length: float, window: float) -> Sequence[float]:
    """Where along an axis windows begin; neighbours share half of their length at least."""
    window = min(window, length)
    count = 1 + max(0, ceil(2 * (length - window) / window - 0.04))  # a sliver of 2 % is not worth a window
    return [0.0] if count == 1 else [place * (length - window) / (count - 1) for place in range(count)]


def _weights(starts: Sequence[float], window: float, length: int) -> list[Tensor]:
    """Of each window the weights along an axis, (length,): they add up to 1 at every pixel."""
    places = torch.arange(length, dtype=torch.float64) + 0.5
    step = starts[1] - starts[0] if len(starts) > 1 else 0.0
    found = []
    for number, start in enumerate(starts):
        weight = ((places > start - 1) & (places < start + window + 1)).double()
        for distance, neighbour in ((places - start, number > 0), (start + window - places, number + 1 < len(starts))):
            if neighbour:
                weight *= torch.sin(pi / 2 * (distance / (window - step)).clamp(0, 1)).square().clamp(min=_LEAST)
        found.append(weight)
    total = torch.stack(found).sum(0).clamp(min=_LEAST**2)
    return [weight / total for weight in found]
