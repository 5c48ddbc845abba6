"""Where in a photograph a model looks: the box that its preprocessing takes, and windows over the whole photograph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.loading.images import Preprocess, normalisation, to_input


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


def box_of(size: tuple[int, int], preprocess: Preprocess) -> Box:
    """The part of a photograph that the model gets, measured: a picture of coordinates is preprocessed.

    Args:
        size: width and height of the photograph.
        preprocess: any that resizes, crops, pads and normalises, without turning or bending the picture.

    Raises:
        InputError: the preprocessing fails, or it does something else.
    """
    width, height = size
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    left, right = _edges(across, preprocess, size, axis=1)
    top, bottom = _edges(down, preprocess, size, axis=0)
    return Box(left, top, right, bottom)


def _edges(ramp: np.ndarray, preprocess: Preprocess, size: tuple[int, int], axis: int) -> tuple[float, float]:
    """Along an axis the edges of the box, from how a ramp from black to white comes out."""
    length = size[1 - axis] if axis == 0 else size[0]
    grey = Image.fromarray(np.stack([ramp.round().astype(np.uint8)] * 3, axis=-1))
    black, span = normalisation(size, preprocess)
    seen = torch.where(span == 0, torch.nan, (to_input(grey, preprocess) - black) / span).double()
    lines = (seen.nanmean(0) if axis == 1 else seen.nanmean(0).T).numpy() * (length - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a line that is all padding there is no mean
        line, spread = np.nanmean(lines, axis=0), np.nanmax(np.abs(lines - np.nanmean(lines, axis=0)))
    places = np.arange(len(line))
    # Padding and what the borders of a resized ramp hold at its ends say nothing of the slope.
    used = np.isfinite(line) & (line > 0.02 * length) & (line < 0.98 * length)
    if used.sum() < 3:
        raise InputError("the preprocessing leaves too little of a picture to tell where it was")
    slope, offset = np.polyfit(places[used], line[used], 1)
    # A picture of 256 grey levels tells places to 1/255; what strays further is no resizing and cropping.
    strays = np.abs(slope * places[used] + offset - line[used]).max()
    if slope <= 0 or spread > 0.03 * length or strays > 0.03 * length + 2 * slope:
        raise InputError("the preprocessing does more than to resize, crop and pad: maps have no place in photographs")
    return float(offset + 0.5 - 0.5 * slope), float(offset + 0.5 + (len(line) - 0.5) * slope)


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


def windows(size: tuple[int, int], box: Box) -> list[Box]:
    """Boxes as large as this one that cover the whole photograph, evenly spaced, from the top left.

    Args:
        size: width and height of the photograph.
        box: what the model gets of it.
    """
    columns = _starts(size[0], box.right - box.left)
    rows = _starts(size[1], box.bottom - box.top)
    return [Box(left, top, left + box.right - box.left, top + box.bottom - box.top) for top in rows for left in columns]


def _starts(length: float, window: float) -> Sequence[float]:
    window = min(window, length)
    count = max(1, ceil(length / window - 0.02))  # a sliver of 2 % is not worth a window
    return [0.0] if count == 1 else [place * (length - window) / (count - 1) for place in range(count)]


def window_input(photo: Image.Image, window: Box, preprocess: Preprocess) -> Tensor:
    """What the model would get if it looked at this window: resized to its input, normalised as it does.

    Returns:
        (channels, height, width).
    """
    black, span = normalisation(photo.size, preprocess)
    channels, height, width = black.shape
    part = photo.crop(window.rounded).resize((width, height), Image.Resampling.BICUBIC)
    part = part.convert("L") if channels == 1 else part
    pixels = torch.from_numpy(np.asarray(part, dtype=np.float32) / 255)
    pixels = pixels[None] if channels == 1 else pixels.movedim(-1, 0)
    return black + span * pixels
