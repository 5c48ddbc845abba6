"""Where in a photograph a model looks: the box that its preprocessing takes, and what it would get of another one.

from fxlrp.geometry import box_of
explainer.report(images, "report.html", photos=photos, boxes=[box_of(photo.size, preprocess) for photo in photos])
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.loading.images import Preprocess, normalisation, to_input
from fxlrp.maps.placing import Box, Tiling, placed

__all__ = ["Box", "Tiling", "box_of", "placed", "window_input"]


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
