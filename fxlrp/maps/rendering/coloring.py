"""Heatmaps in colours, alone or on a photograph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.maps.rendering.pixels import from_image, to_bytes

COLORS = {"symmetric": "RdBu_r", "positive": "Reds"}
"""Matplotlib's names of the colour maps: zero is white in both, and neither needs red told from green."""

# Contrast, brightness and colour of the photograph under an overlay: pale and nearly grey, as no relevance is white.
_CONTRAST, _BRIGHTNESS, _COLOR = 0.6, 0.38, 0.3

_NO_VALUE = 0.5  # Grey, for NaN and infinity.


def fitting_colors(heatmap: Tensor) -> str:
    """The colours that suit a map: ``"symmetric"`` if it has visible negative relevance, else ``"positive"``.

    Args:
        heatmap: (height, width), or any other shape.
    """
    finite = heatmap[torch.isfinite(heatmap)]
    if not finite.numel():
        return "positive"
    # Rounding errors can have the other sign.
    return "positive" if bool(finite.min() >= -1e-3 * finite.abs().max()) else "symmetric"


def color_range(heatmaps: Iterable[Tensor], colors: str = "symmetric", percentile: float = 99.5) -> float:
    """The magnitude at which the colours of these maps end, the same for all of them.

    Args:
        heatmaps: each (height, width), relevance.
        colors: ``"symmetric"`` or ``"positive"``, as for :func:`scaled`.
        percentile: the range ends at this percentile of the magnitudes shown; larger ones are
            clipped, because a few strong pixels would leave the others dark.

    Returns:
        An amount of relevance; 0 if the maps have none to show.

    Raises:
        InputError: as :func:`scaled`.
    """
    _check_options(colors, percentile)
    each = [_magnitudes(heatmap, colors) for heatmap in heatmaps]
    magnitudes = torch.cat(each) if each else torch.empty(0)
    if not magnitudes.numel():
        return 0.0
    # The percentile is 0 if only a few pixels have relevance.
    return float(_quantile(magnitudes, percentile / 100)) or float(magnitudes.max())


def scaled(
    heatmap: Tensor, colors: str = "symmetric", percentile: float = 99.5, *, limit: float | None = None
) -> Tensor:
    """The map divided by its colour range.

    Args:
        heatmap: (height, width), relevance.
        colors: ``"symmetric"``: relevance divided by the range, so that zero stays zero.
            ``"positive"``: the same, negative relevance shown as zero.
        percentile: where the range ends, as for :func:`color_range`.
        limit: the range itself, in relevance; ``None``: that of this map.

    Returns:
        (height, width), from −1 to 1 or from 0 to 1; NaN where the map is not finite. A map
        without relevance is zero; a constant map is at the end of the range.

    Raises:
        InputError: the map is no floating point tensor (height, width), or an option has another value.
    """
    check_map(heatmap)
    _check_options(colors, percentile)
    if limit is None:
        limit = color_range([heatmap], colors, percentile)
    elif not (math.isfinite(limit) and limit >= 0):
        raise InputError(f"limit must be a magnitude of relevance, not {limit}")
    values = heatmap.detach().cpu().double()
    shown = torch.where(torch.isfinite(values), values, 0)
    shown = shown.clamp(min=0) if colors == "positive" else shown
    if limit > 0:
        shown = (shown / limit).clamp(-1, 1)
    return torch.where(torch.isfinite(values), shown, torch.nan)


def colorize(
    heatmap: Tensor, colors: str = "symmetric", percentile: float = 99.5, *, limit: float | None = None
) -> Tensor:
    """The map in colours.

    Args:
        heatmap: (height, width), relevance.
        colors: ``"symmetric"`` or ``"positive"``, as for :func:`scaled`.
        percentile: where the colours end, as for :func:`color_range`.
        limit: where the colours end, as relevance; it replaces the percentile.

    Returns:
        uint8 (height, width, 3); what is not finite is grey.

    Raises:
        InputError: as :func:`scaled`.
        MissingExtraError: matplotlib is not installed.
    """
    values = scaled(heatmap, colors, percentile, limit=limit)
    return to_bytes(_painted(values, colors))


def overlay(
    photo: Any, heatmap: Tensor, colors: str = "symmetric", percentile: float = 99.5, *,
    strength: float = 0.9, smooth: float = 1.0, limit: float | None = None, contour: float | None = None,
) -> Tensor:  # fmt: skip
    """The map over the photograph.

    Relevance decides both colour and opacity: where there is little, the photograph is visible, paler than it is and
    nearly grey.

    Args:
        photo: a tensor (3, height, width) between 0 and 1, or a Pillow image, of the map's size.
            Another size is an error: stretched over a cropped photograph, the map would be in the wrong place.
        heatmap: (height, width), relevance.
        colors: ``"symmetric"`` or ``"positive"``, as for :func:`scaled`.
        percentile: where the colours end, as for :func:`color_range`.
        strength: the opacity of the strongest relevance, between 0 and 1.
        smooth: σ, in pixels, of the Gaussian that blurs the map, because relevance that passed a convolution of
            stride 2 alternates from pixel to pixel; 0: no blur.
        limit: where the colours end, as relevance; it replaces the percentile.
        contour: draw a line round the smallest region that holds this share of the positive relevance, such as 0.5.

    Returns:
        uint8 (height, width, 3).

    Raises:
        InputError: as :func:`scaled`, or the photograph, the strength or the smoothing is not as described.
        MissingExtraError: matplotlib is not installed.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must lie between 0 and 1, not at {strength}")
    if not (math.isfinite(smooth) and smooth >= 0):
        raise InputError(f"smooth must be a number of pixels, 0 or more, not {smooth}")
    if contour is not None and not 0 < contour <= 1:
        raise InputError(f"contour is a share above 0 and up to 1, not {contour}")
    check_map(heatmap)
    values = scaled(blurred(heatmap, smooth), colors, percentile, limit=limit)
    below = _photo(photo)
    if below.shape[:2] != values.shape:
        raise InputError(f"the photograph is {tuple(below.shape[:2])} and the map {tuple(values.shape)}")
    grey = (below * below.new_tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    below = _CONTRAST * (_COLOR * below + (1 - _COLOR) * grey) + _BRIGHTNESS
    opacity = strength * values.abs().nan_to_num(1).unsqueeze(-1)
    picture = opacity * _painted(values, colors) + (1 - opacity) * below
    if contour is not None:
        picture[_contour(blurred(heatmap, smooth), contour)] = 0.15
    return to_bytes(picture)


def to_photo(picture: Any) -> Tensor:
    """The photograph alone, as a picture: uint8 (height, width, 3).

    Args:
        picture: as :func:`overlay` takes it.
    """
    return to_bytes(_photo(picture))


def stretched(image: Tensor) -> Tensor:
    """A model's input as a photograph: its smallest value is black, its largest white.

    Args:
        image: (1 or 3, height, width).

    Returns:
        (3, height, width), between 0 and 1.
    """
    low, high = image.min(), image.max()
    return ((image.detach().float() - low) / (high - low).clamp(min=1e-12)).expand(3, -1, -1)


def _check_options(colors: str, percentile: float) -> None:
    if colors not in COLORS:
        raise InputError(f"colors={colors!r}: choose one of {', '.join(map(repr, COLORS))}")
    if not 0 < percentile <= 100:
        raise InputError(f"percentile must lie above 0 and at most at 100, not at {percentile}")


def check_map(heatmap: Any) -> None:
    """Check that this is a map.

    Raises:
        InputError: it is no floating point tensor (height, width).
    """
    if isinstance(heatmap, Tensor) and heatmap.dim() == 2 and heatmap.is_floating_point() and heatmap.numel():
        return
    got = f"{tuple(heatmap.shape)} of {heatmap.dtype}" if isinstance(heatmap, Tensor) else type(heatmap).__name__
    raise InputError(f"a picture is made of one floating point map (height, width), not {got}")


def blurred(heatmap: Tensor, sigma: float) -> Tensor:
    """The map blurred by a Gaussian of ``sigma`` pixels; values that are not finite stay, and do not spread."""
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    values = heatmap.detach().cpu().double()
    # Three sigmas contain 99.7 % of a Gaussian; reflection needs a margin smaller than the map.
    radius = min(math.ceil(3 * sigma), min(values.shape) - 1)
    if radius < 1:
        return values
    finite = torch.isfinite(values)
    clean = torch.where(finite, values, 0).unsqueeze(0)
    # One axis after the other: both at once would take memory for a square of weights at every pixel.
    size = 2 * radius + 1
    blurred = gaussian_blur(gaussian_blur(clean, [size, 1], [sigma] * 2), [1, size], [sigma] * 2).squeeze(0)
    return torch.where(finite, blurred, values)


def _contour(heatmap: Tensor, share: float) -> Tensor:
    """The border of the smallest region with this share of the positive relevance: boolean (height, width)."""
    values = heatmap.nan_to_num(0, 0, 0).clamp(min=0)
    falling = values.flatten().sort(descending=True).values
    if not falling[0]:
        return torch.zeros_like(values, dtype=torch.bool)
    needed = int((falling.cumsum(0) < share * falling.sum()).sum())
    inside = (values >= falling[min(needed, len(falling) - 1)]).float()[None, None]
    width = 2 * max(1, min(values.shape) // 300) + 1
    # A pixel is on the border if it lies inside and a neighbour does not.
    outside = torch.nn.functional.max_pool2d(1 - inside, width, stride=1, padding=width // 2)
    return (inside * outside)[0, 0].bool()


def _magnitudes(heatmap: Tensor, colors: str) -> Tensor:
    check_map(heatmap)
    values = heatmap.detach().cpu().double()
    values = values[torch.isfinite(values)]
    return values.clamp(min=0) if colors == "positive" else values.abs()


def _painted(values: Tensor, colors: str) -> Tensor:
    """The colours of values from :func:`scaled`, (height, width, 3), between 0 and 1."""
    colormap = require("matplotlib", "draw").colormaps[COLORS[colors]]
    position = (values + 1) / 2 if colors == "symmetric" else values
    painted = torch.from_numpy(colormap(position.nan_to_num(0).numpy())[..., :3])
    return torch.where(values.isnan().unsqueeze(-1), _NO_VALUE, painted)


def _photo(photo: Any) -> Tensor:
    """The photograph as (height, width, 3) between 0 and 1, float64."""
    if not isinstance(photo, Tensor):
        from PIL import Image

        if not isinstance(photo, Image.Image):
            kind = type(photo).__name__
            raise InputError(f"a photograph is a tensor (3, height, width) or a Pillow image, not {kind}")
        return from_image(photo).double() / 255
    if photo.dim() != 3 or photo.shape[0] != 3 or not photo.is_floating_point():
        raise InputError(f"a photograph is a floating point tensor (3, height, width), not {tuple(photo.shape)}")
    return photo.detach().cpu().double().nan_to_num(0).clamp(0, 1).permute(1, 2, 0)


def _quantile(values: Tensor, share: float) -> Tensor:
    # torch.quantile takes at most 16 million values, and a map may have more.
    rank = max(1, math.ceil(share * values.numel()))
    return values.kthvalue(rank).values
