"""The pictures of ``fxlrp explain``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.cli.findings import amount
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.picture_paths import unused_path
from fxlrp.cli.work import Answer, Item, smoothing
from fxlrp.maps.heatmap import layer_map, quantize_heat
from fxlrp.maps.placing import Box, placed
from fxlrp.maps.rendering import (
    Cell,
    Line,
    Scale,
    blurred,
    color_range,
    drawn,
    enlarge,
    overlay,
    save_png,
    sheet,
    to_photo,
)
from fxlrp.views.entry import data_uri, frame_of

_WIDEST = 6000
"""Pixels across a picture with titles."""
_DARK, _LIGHT = 25, 255
"""The greys of the frame round what the model sees."""


def draw(answer: Answer, path: Path, options: ExplainOptions) -> None:
    """Write the picture of an answer: of one question the map alone, of several the photograph and all maps.

    Raises:
        InputError, ImageError: it has no picture, or the file cannot be written.
    """
    maps = [heat for heat in answer.maps if heat is not None]
    if len(maps) < len(answer.maps):  # of an array
        titles = [reason.title for reason in answer.finding.reasons]
        figures = [each.plot(titles=[title]) for each, title in zip(answer.explanations, titles, strict=True)]
        for number, figure in enumerate(figures):
            place = path if not number else path.with_stem(f"{path.stem}-{number + 1}")
            save_png(drawn(figure), place)
        return
    below, shown = photograph(answer.item, options.view)
    laid = [_placed(answer.item, heat, options) for heat in maps]
    # Maps in one unit have one range: how much speaks for a class can then be compared with what speaks for another.
    limit = _range(laid, options) if len({reason.unit for reason in answer.finding.reasons}) == 1 else None
    overlays = [_framed(_overlay(below, heat, options, limit), shown) for heat in laid]
    if len(overlays) == 1 and not options.bar:
        save_png(enlarge(overlays[0]), path)
        return
    colors = options.colors or "symmetric"
    cells = [Cell(picture, reason.title) for picture, reason in zip(overlays, answer.finding.reasons, strict=True)]
    scale = Scale(colors, limit, "" if limit is None else answer.finding.reasons[0].unit)
    if len(cells) > 1:
        cells = [Cell(_framed(to_photo(below), shown), answer.item.path.name), *cells]
    _, height, width = below.shape
    # Wide photographs lie below each other, others beside each other, at their own resolution.
    lines = [Line(cells, scale=scale)]
    if width > 2 * height:
        lines = [Line([cell], scale=scale if number or len(cells) == 1 else None) for number, cell in enumerate(cells)]
    side = min(max(3.2, width / 150), max(3.2, _WIDEST / 150 / len(lines[0].cells)))
    save_png(sheet(lines, side=side, font=9 * sqrt(side / 3.2)), path)


def draw_checkpoints(
    answer: Answer, picture: Path, used: set[str], options: ExplainOptions
) -> Iterator[tuple[str, str]]:
    """Write a picture beside ``picture`` for each checkpoint that has a map; give what there is to tell."""
    explanation, reason, seen = answer.explanations[0], answer.finding.reasons[0], answer.item.seen
    for name, value in explanation.checkpoints.items():
        # A module that takes several values, or is called several times, has one each.
        several = value if isinstance(value, tuple) else (value,)
        for number, relevance in enumerate(several):
            label = name if len(several) == 1 else f"{name}[{number}]"
            if len(relevance) != len(explanation.start):  # windows or tokens in front
                shape = tuple(relevance.shape)
                yield "checkpoint", f"{label}: relevance of shape {shape} does not have the images in front"
                continue
            yield "checkpoint", f"{label}: Σ relevance {amount(float(relevance.double().sum()), reason.start)}"
            shown = None if seen is None else layer_map(relevance[0].detach().cpu(), *seen.shape[1:])
            if shown is None or seen is None:
                yield "no picture", f"{label}: relevance of shape {tuple(relevance.shape[1:])} is no map of the image"
                continue
            beside = unused_path(picture.parent, f"{picture.stem}_{name}".replace("/", "_"), used)
            save_png(enlarge(_overlay(seen, _smoothed(shown, options), options)), beside)
            yield "picture", str(beside)


def gallery_pictures(answer: Answer, options: ExplainOptions, side: int = 1200) -> dict[str, Any]:
    """What the page shows: photograph and maps as JPEGs in data URIs, where the colours of each map end, the frame."""
    colors = {"colors": options.colors or "symmetric"}
    if answer.item.photo is None:
        figures = [drawn(each.plot()) for each in answer.explanations]
        maps = [(data_uri(figure, 1600), 0.0) for figure in figures]
        return {"photo": "", "maps": maps, "frame": (), "shape": figures[0].shape[1] / figures[0].shape[0], **colors}
    below, box = photograph(answer.item, options.view)
    maps = []
    for heat in answer.maps:
        assert heat is not None
        laid = _placed(answer.item, heat, options)
        limit = _range([laid], options)
        maps.append((data_uri(_overlay(below, laid, options, limit), side), limit))
    _, height, width = below.shape
    return {"photo": data_uri(to_photo(below), side), "maps": maps, "frame": frame_of(box, (width, height)),
            "shape": width / height, **colors}  # fmt: skip


def photograph(item: Item, view: str) -> tuple[Tensor, Box | None]:
    """What maps are drawn on, (3, height, width), and the frame in it."""
    if view != "crop" and item.box is not None and item.photo is not None:
        pixels = torch.frombuffer(bytearray(item.photo.tobytes()), dtype=torch.uint8)
        photo = pixels.reshape(item.photo.height, item.photo.width, 3).permute(2, 0, 1).float() / 255
        return photo, item.box if view == "whole" else None
    if item.seen is not None:
        return item.seen, None
    return torch.ones(3, *item.value.shape[-2:]), None


def _placed(item: Item, heat: Tensor, options: ExplainOptions) -> Tensor:
    """The map as it is laid on the photograph; that of tiles lies there already."""
    if options.view == "tiles":
        return heat
    smooth = _smoothed(heat, options)
    if options.view == "whole" and item.box is not None and item.photo is not None:
        return placed(smooth, item.box, item.photo.size)
    return smooth


def _smoothed(heat: Tensor, options: ExplainOptions) -> Tensor:
    """The map in levels, and blurred: in pixels of what the model sees, however large the photograph is."""
    heat = heat.float() if options.quantize is None else quantize_heat(heat.float(), options.quantize)
    return blurred(heat, smoothing(options)).float()


def _range(maps: Sequence[Tensor], options: ExplainOptions) -> float:
    """Where the colours of these maps end."""
    return color_range(maps, options.colors or "symmetric", options.percentile)


def _overlay(below: Tensor, heat: Tensor, options: ExplainOptions, limit: float | None = None) -> Tensor:
    """The map on the photograph; ``limit``: where its colours end, else in a range of its own."""
    limit = _range([heat], options) if limit is None else limit
    return overlay(below, heat, options.colors or "symmetric", smooth=0, limit=limit, contour=options.contour)


def _framed(picture: Tensor, box: Box | None) -> Tensor:
    """The picture with a frame round the box, where that is not all of it: dark outside and light inside."""
    height, width, _ = picture.shape
    if box is None or box.within((width, height)) == (0, 0, width, height):
        return picture
    left, top, right, bottom = box.within((width, height))
    framed, line = picture.clone(), max(1, round(min(height, width) / 250))
    for inset, colour in ((0, _DARK), (line, _LIGHT)):
        rows, columns = slice(top + inset, bottom - inset), slice(left + inset, right - inset)
        framed[rows, columns][:line] = framed[rows, columns][-line:] = colour
        framed[rows, columns][:, :line] = framed[rows, columns][:, -line:] = colour
    return framed
