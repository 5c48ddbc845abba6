"""The pictures of a report: curves, scatter plots of conservation, agreement, and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from fxlrp.common.extras import require
from fxlrp.evaluation.report_tables import TIE_NAMES, title
from fxlrp.evaluation.result_frames import mean_curve, of_method
from fxlrp.evaluation.statistics import Array
from fxlrp.maps.rendering import Cell, Line, colorize, fitting_colors, save_jpeg, sheet, to_photo

if TYPE_CHECKING:
    from fxlrp.evaluation.galleries import Shown

# The colours of Okabe and Ito, which differ for every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

_SCATTERED = 8
"""Methods whose conservation is drawn."""


def _figure(*arguments: Any, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes; without a frame above and at the right."""
    require("matplotlib", "evaluate").use("Agg")
    figure, axes = require("matplotlib.pyplot", "evaluate").subplots(*arguments, layout="constrained", **options)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path, dpi: int = 120) -> bool:
    figure.savefig(path, dpi=dpi)
    require("matplotlib.pyplot", "evaluate").close(figure)
    return True


def curves(results: pl.DataFrame, tie: str, path: Path) -> bool:
    """Mean insertion and deletion curves of maps as they are; whether there were any."""
    methods = results.filter(levels=0)["method"].unique(maintain_order=True)
    images = {method: of_method(results, method, 0) for method in methods}
    shown = [method for method in methods if mean_curve(images[method], f"insertion_curve_{tie}") is not None]
    if not shown:
        return False
    figure, axes = _figure(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, what in zip(axes, ("insertion", "deletion"), strict=True):
        for i, method in enumerate(shown):
            curve = mean_curve(images[method], f"{what}_curve_{tie}")
            assert curve is not None
            percent = 100 * np.arange(1, len(curve) + 1) / len(curve)
            style = ("-", "--", ":")[i // len(_COLOURS) % 3]
            axis.plot(percent, 100 * curve, style, color=_COLOURS[i % len(_COLOURS)], label=method)
        axis.set(title=f"{what.capitalize()}, {TIE_NAMES[tie]}", xlabel="pixels named, %")
    axes[0].set_ylabel("probability of the class, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return _save(figure, path)


def conservation(arrivals: pl.DataFrame, path: Path) -> bool:
    """What arrived at each checkpoint against what entered, one point per image (the paper's Fig. 7)."""
    methods = arrivals["method"].unique(maintain_order=True).head(_SCATTERED)
    checkpoints = arrivals["checkpoint"].unique(maintain_order=True)
    if not len(methods):
        return False
    figure, axes = _figure(len(methods), len(checkpoints), squeeze=False,
                           figsize=(2.8 * len(checkpoints), 2.6 * len(methods)))  # fmt: skip
    for (row, column), axis in np.ndenumerate(axes):
        method, checkpoint = methods[row], checkpoints[column]
        images = arrivals.filter(method=method, checkpoint=checkpoint)
        if not len(images):
            axis.set_visible(False)
            continue
        start = images["start"].to_numpy()
        diagonal = [min(start.min(), 0), max(start.max(), 1e-12)]
        axis.plot(diagonal, diagonal, color="#999999", linewidth=1)
        axis.scatter(start, images["arrived"].to_numpy(), s=5, color=_COLOURS[0], alpha=0.5, linewidths=0)
        axis.set_title(f"{method}\nat {checkpoint}", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.supxlabel("relevance that entered", fontsize=9)
    figure.supylabel("relevance that arrived", fontsize=9)
    return _save(figure, path, dpi=110)


def agreement(names: Sequence[str], matrix: Array, path: Path) -> bool:
    """The mean rank correlation of each pair of methods."""
    if len(names) < 2:
        return False
    side = 2.5 + 0.42 * len(names)
    figure, axis = _figure(figsize=(side + 1, side))
    image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "w" if abs(value) > 0.6 else "k"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5, color=color)
    figure.colorbar(image, label="mean rank correlation", shrink=0.7)
    return _save(figure, path)


def scores(summary: pl.DataFrame, ties: Sequence[str], path: Path) -> bool:
    """The ID score of every method with its interval, one panel per tie rule."""
    shown = summary.filter(pl.any_horizontal(pl.col(f"id_{tie}").is_not_null() for tie in ties))
    if not len(shown):
        return False
    figure, axes = _figure(1, len(ties), sharey=True, squeeze=False,
                           figsize=(3.5 + 3.2 * len(ties), 1.4 + 0.24 * len(shown)))  # fmt: skip
    colours = [_COLOURS[levels > 0] for levels in shown["levels"]]
    for axis, tie in zip(axes[0], ties, strict=True):
        mean, low, high = (100 * shown[f"{name}_{tie}"].to_numpy() for name in ("id", "id_low", "id_high"))
        axis.hlines(range(len(shown)), low, high, colors=colours, linewidth=2)
        axis.scatter(mean, range(len(shown)), s=16, c=colours)
        axis.axvline(0, color="#999999", linewidth=0.8)
        axis.set(title=f"ID, {TIE_NAMES[tie]}", xlabel="%")
    names = [title(method, levels) for method, levels in shown.select("method", "levels").iter_rows()]
    axes[0, 0].set_yticks(range(len(shown)), names, fontsize=7)
    axes[0, 0].invert_yaxis()
    return _save(figure, path)


def gallery(images: Sequence[Shown], methods: Sequence[str], path: Path) -> None:
    """Images in rows, maps of methods in columns.

    Args:
        images: with their maps.
        methods: in the order in which they are shown; one without maps is left out.
        path: a PNG file.
    """
    columns = [method for method in methods if any(method in image.maps for image in images)]
    lines = []
    for image in images:
        cells: list[Cell | None] = [
            _map_cell(image, method) if method in image.maps else None for method in columns
        ]
        lines.append(Line([Cell(to_photo(torch.from_numpy(image.picture).permute(2, 0, 1)), image.caption), *cells]))
    save_jpeg(sheet(lines, side=1.2, font=5), path)


def _map_cell(image: Shown, method: str) -> Cell:
    heatmap = torch.from_numpy(image.maps[method]).double()
    return Cell(colorize(heatmap, fitting_colors(heatmap)), image.captions[method])
