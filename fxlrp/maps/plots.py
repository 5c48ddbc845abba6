"""Relevance drawn by matplotlib, whatever the input is: pictures, signals, volumes, tables, tokens.

Colours are signed everywhere: red speaks for the class, blue against it, white is zero. One figure has one range.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.maps.heatmap import patch_map
from fxlrp.maps.rendering import COLORS, color_range, colorize, enlarge, overlay, stretched

_MOST_SIGNALS = 12
"""Channels of a signal that are drawn, those with the most relevance."""
_MOST_BARS = 20
_SLICES = 6
_SIDE = 3.0
"""Of a panel, in inches."""


@dataclass(frozen=True)
class Panel:
    """One map of one item, to be drawn in one place.

    Attributes:
        relevance: of the item, without the batch: (channels, height, width), (channels, length),
            (channels, depth, height, width), (features,) or (tokens, features).
        given: the input in the same shape, or the token numbers (tokens,); ``None``: it is not shown.
        title: above it.
        labels: of features or tokens; empty: their numbers.
        patch: height and width of the patches by which a picture's map is shown; ``None``: by pixel.
    """

    relevance: Tensor
    given: Tensor | None = None
    title: str = ""
    labels: Sequence[str] = ()
    patch: tuple[int, int] | None = None


def plot(rows: Sequence[Sequence[Panel]], unit: str = "relevance", percentile: float = 99.5) -> Any:
    """A figure of panels in rows, with one colour bar.

    Args:
        rows: from the top, each from the left.
        unit: what relevance is in, such as ``"logits"``: the label of the colour bar.
        percentile: where the colours end, of all magnitudes that are shown.

    Returns:
        A ``matplotlib.figure.Figure``; a notebook shows it, ``.savefig(path)`` writes it.

    Raises:
        InputError: there is nothing to draw, relevance has another shape, or labels do not fit.
        MissingExtraError: matplotlib is not installed.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise InputError("a plot needs relevance of at least one item")
    figure_class = _shown_by_notebooks()
    cells = [[_Cell(panel) for panel in row] for row in rows]
    limit = color_range([cell.shown for row in cells for cell in row], "symmetric", percentile)
    wide = max(cell.wide for row in cells for cell in row)
    size = (_SIDE * wide * columns + 0.9, (_SIDE + 0.3) * len(rows))
    figure = figure_class(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, cells, strict=True):
        for axis in line[len(row) :]:
            axis.set_axis_off()
        for axis, cell in zip(line, row, strict=False):
            cell.draw(axis, limit)
            axis.set_title(cell.panel.title, fontsize=9)
    _bar(figure, axes, limit, unit)
    return figure


@cache
def _shown_by_notebooks() -> Any:
    """A figure that a notebook shows as it is; matplotlib's own needs pyplot and its backend for notebooks."""
    figure_class: Any = require("matplotlib.figure", "draw").Figure

    class Plot(figure_class):  # type: ignore[misc]
        """A ``matplotlib.figure.Figure``."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=90)
            return buffer.getvalue()

    return Plot


class _Cell:
    """A panel, and what it shows.

    Attributes:
        panel: the panel.
        shown: the numbers that have colours, (rows, columns).
        wide: its width, in sides.
    """

    def __init__(self, panel: Panel) -> None:
        relevance = panel.relevance.detach().cpu().float()
        kinds: dict[int, Callable[[Tensor], Tensor]] = {
            1: lambda features: features[None], 2: self._of_lines, 3: self._of_picture, 4: self._slices,
        }  # fmt: skip
        if relevance.dim() not in kinds or not relevance.numel():
            raise InputError(f"relevance of one item of shape {tuple(relevance.shape)} has no plot")
        self.panel, self.axes = panel, relevance.dim()
        self.tokens = self.axes == 2 and panel.given is not None and panel.given.dim() == 1
        self.shown = kinds[self.axes](relevance)
        self.wide = 1.0 if self.axes == 3 else 2.0
        count = self.shown.shape[-1]
        if panel.labels and len(panel.labels) != count:
            raise InputError(f"there are {len(panel.labels)} labels and relevance of {count}")

    def draw(self, axis: Any, limit: float) -> None:
        if self.axes == 1 or self.tokens:
            self._bars(axis, limit)
        elif self.axes == 2:
            self._signal(axis, limit)
        else:
            self._picture(axis, limit)

    def _of_lines(self, relevance: Tensor) -> Tensor:
        """Of tokens (tokens, features) the sums; of a signal (channels, length) all of it."""
        return relevance.sum(1)[None] if self.tokens else relevance

    def _of_picture(self, relevance: Tensor) -> Tensor:
        pixels = relevance.sum(0)
        return pixels if self.panel.patch is None else patch_map(pixels, self.panel.patch)

    @staticmethod
    def _slices(relevance: Tensor) -> Tensor:
        """Of a volume the slices with the most relevance, side by side in their order."""
        volume = relevance.sum(0)
        most = volume.abs().sum((1, 2)).topk(min(_SLICES, len(volume))).indices.sort().values
        return torch.cat(list(volume[most]), dim=1)

    def _picture(self, axis: Any, limit: float) -> None:
        given = self.panel.given
        photo = self.axes == 3 and given is not None and given.shape[0] in (1, 3)
        below = stretched(given.cpu()) if photo and given is not None else torch.ones(3, *self.shown.shape)
        axis.imshow(enlarge(overlay(below, self.shown, "symmetric", limit=limit)).numpy())
        axis.set(xticks=[], yticks=[])

    def _signal(self, axis: Any, limit: float) -> None:
        """A line per channel, coloured by relevance; without the signal a flat one."""
        lines = require("matplotlib.collections", "draw").LineCollection
        most = self.shown.abs().sum(1).topk(min(_MOST_SIGNALS, len(self.shown))).indices.sort().values
        given = self.panel.given
        values = torch.zeros_like(self.shown) if given is None else given.detach().cpu().float()
        length, step = values.shape[1], float((values.amax() - values.amin()).clamp(min=1e-12)) * 1.1
        for place, channel in enumerate(most.tolist()):
            line = torch.stack([torch.arange(length).float(), values[channel] - place * step], dim=1)
            pairs = torch.stack([line[:-1], line[1:]], dim=1) if length > 1 else line[None]
            colors = colorize(self.shown[channel][None], limit=limit)[0] / 255
            axis.plot(line[:, 0], line[:, 1], color="#bbbbbb", linewidth=0.6)
            axis.add_collection(lines(pairs.numpy(), colors=colors[: len(pairs)].numpy(), linewidths=2))
        axis.set(xlim=(0, max(1, length - 1)), yticks=[-place * step for place in range(len(most))])
        axis.set_yticklabels([f"channel {channel}" for channel in most.tolist()], fontsize=7)

    def _bars(self, axis: Any, limit: float) -> None:
        """A bar per feature, those with the most relevance; of tokens all, in their order."""
        amounts = self.shown[0]
        chosen = torch.arange(len(amounts))
        if not self.tokens:
            chosen = amounts.abs().topk(min(_MOST_BARS, len(amounts))).indices
        colors = colorize(amounts[None, chosen], limit=limit)[0] / 255
        names = [self.panel.labels[index] if self.panel.labels else str(index) for index in chosen.tolist()]
        places = range(len(chosen))
        axis.barh(places, amounts[chosen].numpy(), color=colors.numpy(), edgecolor="#888888", linewidth=0.5)
        axis.set_yticks(places, names, fontsize=7)
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.6)


def _bar(figure: Any, axes: Any, limit: float, unit: str) -> None:
    """One colour bar for all panels, in relevance."""
    require("matplotlib", "draw")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(-limit or -1, limit or 1), COLORS["symmetric"])
    figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.01).set_label(unit, fontsize=8)
