"""Many maps in one picture: methods × images, with captions and colour bars."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError, MissingExtraError
from fxlrp.common.extras import require
from fxlrp.maps.heatmap import patch_map
from fxlrp.maps.rendering.coloring import (
    COLORS,
    blurred,
    check_map,
    color_range,
    colorize,
    fitting_colors,
    overlay,
    stretched,
    to_photo,
)
from fxlrp.maps.rendering.pixels import enlarge

_MOST_IMAGES = 6
"""Images in a contact sheet."""

_RANGES = ("map", "method", "all")

_OVERLAY_BLUR = 1.0


@dataclass(frozen=True)
class Scale:
    """A colour bar.

    Attributes:
        colors: ``"symmetric"`` or ``"positive"``.
        limit: the relevance at its end; ``None``: each map of the row has its own range.
        unit: what relevance is in, such as ``"logits"``; empty: it is not told.
    """

    colors: str
    limit: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet.

    Attributes:
        picture: uint8 (height, width, 3).
        caption: above it.
    """

    picture: Tensor
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a sheet.

    Attributes:
        cells: its pictures; ``None`` leaves a gap.
        label: at its left.
        scale: a colour bar at its right.
    """

    cells: Sequence[Cell | None]
    label: str = ""
    scale: Scale | None = None


def grid(
    maps: Mapping[str, Any], photos: Any = None, *, titles: Sequence[str] = (), colors: str | None = None,
    percentile: float = 99.5, on_photos: bool = False, one_range: str = "map", bars: bool = True, side: float = 2.2,
) -> Tensor:  # fmt: skip
    """Maps of several methods for several images: one row per method, one column per image, photographs on top.

    Args:
        maps: the heatmaps of each method by its name: (images, height, width), or a sequence of (height, width).
        photos: one photograph per image, each as :func:`overlay` takes it.
        titles: a caption for each image.
        colors: ``"symmetric"`` or ``"positive"``, for all; ``None``: the colours that suit each method's maps.
        percentile: where the colours end, as for :func:`color_range`.
        on_photos: whether maps are drawn over the photographs.
        one_range: the maps that share a colour range. ``"map"``: each map has its own, to see *where* its relevance
            is; ``"method"``: the maps of a row; ``"all"``: all maps, to compare amounts.
        bars: whether each row has a colour bar at its right.
        side: of a picture, in inches at 150 pixels per inch.

    Returns:
        A picture, uint8 (height, width, 3).

    Raises:
        InputError: there is no map, the numbers of maps, photographs or titles differ, or as :func:`overlay`.
        MissingExtraError: matplotlib is not installed.
    """
    if one_range not in _RANGES:
        raise InputError(f"one_range={one_range!r}: choose one of {', '.join(map(repr, _RANGES))}")
    rows = {name: list(heatmaps) for name, heatmaps in maps.items()}
    photographs = None if photos is None else list(photos)
    _check(rows, photographs, titles, on_photos=on_photos)
    chosen = {name: colors or fitting_colors(torch.cat([heat.flatten() for heat in row])) for name, row in rows.items()}
    if one_range == "all" and len(set(chosen.values())) > 1:
        chosen = dict.fromkeys(chosen, "symmetric")
    limits = _limits(rows, chosen, percentile, one_range, blur=_OVERLAY_BLUR if on_photos else 0.0)

    lines = []
    if photographs is not None:
        lines.append(Line([Cell(to_photo(photo)) for photo in photographs], "photograph"))
    for name, row in rows.items():
        palette, limit = chosen[name], limits[name]
        if on_photos and photographs is not None:
            pictures = [
                overlay(photo, heat, palette, percentile, smooth=_OVERLAY_BLUR, limit=limit)
                for photo, heat in zip(photographs, row, strict=True)
            ]
        else:
            pictures = [colorize(heat, palette, percentile, limit=limit) for heat in row]
        lines.append(Line([Cell(picture) for picture in pictures], name, Scale(palette, limit) if bars else None))
    if titles:
        top = [Cell(cell.picture, title) for cell, title in zip(lines[0].cells, titles, strict=True) if cell]
        lines[0] = Line(top, lines[0].label, lines[0].scale)
    return sheet(lines, side=side)


def sheet(lines: Sequence[Line], *, side: float = 2.2, font: float = 10) -> Tensor:
    """Pictures in rows and columns.

    Args:
        lines: the rows, from the top.
        side: of a picture, in inches at 150 pixels per inch.
        font: size of captions and labels, in points.

    Returns:
        A picture, uint8 (height, width, 3).

    Raises:
        InputError: there is no picture.
        MissingExtraError: matplotlib is not installed.
    """
    columns = max((len(line.cells) for line in lines), default=0)
    if not columns:
        raise InputError("a sheet needs a picture")
    figure_module = require("matplotlib.figure", "draw")
    bars = any(line.scale for line in lines)
    shapes = [max((_shape(cell, side) for cell in line.cells if cell is not None), default=1.0) for line in lines]
    size = (side * columns + 0.3 + 0.8 * bars, sum(side * shape + 0.1 for shape in shapes) + 0.25)
    figure = figure_module.Figure(figsize=size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    widths = [1.0] * columns + [min(0.06, 0.2 / side)] * bars
    axes = figure.subplots(len(lines), columns + bars, squeeze=False, width_ratios=widths, height_ratios=shapes)
    for row, line in zip(axes, lines, strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, cell in zip(row, line.cells, strict=False):
            if cell is not None:
                height, width, _ = cell.picture.shape
                axis.imshow(enlarge(cell.picture, round(150 * side * min(1.0, height / width))).numpy())
                axis.set_title(cell.caption, fontsize=font)
        row[0].set_ylabel(line.label, fontsize=font, color="#444444")
        if line.scale is not None:
            _bar(row[-1], line.scale, 0.8 * font)
    return drawn(figure)


def _shape(cell: Cell, side: float) -> float:
    """Height over width, of pictures that are not too flat for a colour bar beside them."""
    height, width, _ = cell.picture.shape
    return max(min(0.4, 1.2 / side), height / width)


def with_bar(picture: Tensor, scale: Scale, *, side: float = 3) -> Tensor:
    """A picture with a colour bar at its right.

    Args:
        picture: uint8 (height, width, 3).
        scale: its colours.
        side: of the picture, in inches at 150 pixels per inch.

    Returns:
        A picture, uint8 (height, width, 3).
    """
    return sheet([Line([Cell(picture)], scale=scale)], side=side)


def drawn(figure: Any) -> Tensor:
    """The picture of a matplotlib figure: uint8 (height, width, 3)."""
    canvas = require("matplotlib.backends.backend_agg", "draw").FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.reshape(height, width, 4)[..., :3].contiguous()


def contact_sheet(images: Tensor | None, relevance: Any, patch: tuple[int, int] | None = None) -> bytes | None:
    """The first few images with their relevance over them, side by side, as PNG.

    Args:
        images: (batch, 1 or 3, height, width), as the model takes them.
        relevance: in the same shape.
        patch: height and width of the patches by which maps are shown; ``None``: by pixel.

    Returns:
        ``None`` if the shapes differ, or if matplotlib or Pillow is missing.
    """
    if images is None or not isinstance(relevance, Tensor) or relevance.shape != images.shape:
        return None
    try:
        maps = relevance.detach().float().sum(dim=1).cpu()
        maps = maps if patch is None else patch_map(maps, patch)
        colors = fitting_colors(maps)
        shown = zip(images[:_MOST_IMAGES].cpu(), maps[:_MOST_IMAGES], strict=True)
        together = torch.cat([enlarge(overlay(stretched(image), heat, colors), 224) for image, heat in shown], dim=1)
        from PIL import Image
    except (MissingExtraError, ImportError):
        return None
    buffer = io.BytesIO()
    Image.fromarray(together.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _bar(axis: Any, scale: Scale, font: float) -> None:
    """Draw the colour bar on this axis."""
    signed = scale.colors == "symmetric"
    colormap = require("matplotlib", "draw").colormaps[COLORS[scale.colors]]
    values = torch.linspace(1, 0, 256).unsqueeze(1).numpy()
    axis.imshow(colormap(values), aspect="auto", extent=(0, 1, -1 if signed else 0, 1))
    axis.yaxis.tick_right()
    end = "most" if scale.limit is None else f"{scale.limit:.1e}"
    ticks = {-1: f"−{end}", 0: "0", 1: end} if signed else {0: "0", 1: end}
    axis.set_yticks(list(ticks), list(ticks.values()), fontsize=font)
    axis.tick_params(length=2, color="#444444", labelcolor="#444444")
    if scale.unit:
        axis.set_title(scale.unit, fontsize=font, color="#444444", pad=max(6, font))


def _check(rows: Mapping[str, Sequence[Any]], photos: Sequence[Any] | None, titles: Sequence[str], *,
           on_photos: bool) -> None:  # fmt: skip
    """Check the arguments of a grid.

    Raises:
        InputError: see :func:`grid`.
    """
    for row in rows.values():
        for heatmap in row:
            check_map(heatmap)
    counts = {f"maps of {name}": len(row) for name, row in rows.items()}
    if photos is not None:
        counts["photographs"] = len(photos)
    if titles:
        counts["titles"] = len(titles)
    if not rows or 0 in counts.values():
        raise InputError("a grid needs a map")
    if len(set(counts.values())) > 1:
        raise InputError("numbers differ: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if on_photos and photos is None:
        raise InputError("on_photos=True needs photos")


def _limits(rows: Mapping[str, Sequence[Tensor]], colors: Mapping[str, str], percentile: float, one_range: str, *,
            blur: float) -> dict[str, float | None]:  # fmt: skip
    """The end of the colours by method; ``None`` if each map has its own."""
    if one_range == "map":
        return dict.fromkeys(rows)
    shown = {name: [blurred(heat, blur) for heat in row] for name, row in rows.items()}
    if one_range == "method":
        return {name: color_range(row, colors[name], percentile) for name, row in shown.items()}
    together = [heat for row in shown.values() for heat in row]
    return dict.fromkeys(rows, color_range(together, next(iter(colors.values())), percentile))
