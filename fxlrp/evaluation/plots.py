"""The pictures of a report: curves, scatter plots of conservation, agreement, and galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxlrp.common.extras import require
from fxlrp.evaluation.statistics import Array, Group, estimate
from fxlrp.evaluation.tables import TIE_NAMES, title
from fxlrp.maps.rendering import Cell, Line, colorize, fitting_colors, save_png, sheet, to_photo

# The colours of Okabe and Ito, which differ for every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def _pyplot() -> Any:
    require("matplotlib", "evaluate").use("Agg")
    return require("matplotlib.pyplot", "evaluate")


def curves(found: Sequence[Group], ties: str, path: Path) -> bool:
    """Mean insertion and deletion curves; whether there were any."""
    shown = [group for group in found if f"insertion_curve_{ties}" in group.curves]
    if not shown:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, what in zip(axes, ("insertion", "deletion"), strict=True):
        for i, group in enumerate(shown):
            curve = group.curves[f"{what}_curve_{ties}"].mean(axis=0)
            share = np.arange(1, len(curve) + 1) / len(curve)
            style = ("-", "--", ":")[i // len(_COLOURS) % 3]
            axis.plot(100 * share, 100 * curve, style, color=_COLOURS[i % len(_COLOURS)],
                      label=title(group.method, group.levels))  # fmt: skip
        axis.set(title=f"{what.capitalize()}, {TIE_NAMES[ties]}", xlabel="pixels named, %")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability of the class, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def conservation(found: Sequence[Group], path: Path) -> bool:
    """What arrived at each checkpoint against what entered, an image a point (the paper's Fig. 7)."""
    shown = [group for group in found if group.checkpoints and "start" in group.columns and not group.levels]
    if not shown:
        return False
    places = list(dict.fromkeys(place for group in shown for place in group.checkpoints))
    plt = _pyplot()
    figure, axes = plt.subplots(len(shown), len(places), figsize=(2.8 * len(places), 2.6 * len(shown)), squeeze=False,
                                layout="constrained")  # fmt: skip
    for row, group in zip(axes, shown, strict=True):
        for axis, place in zip(row, places, strict=True):
            if place not in group.checkpoints:
                axis.set_visible(False)
                continue
            start, total = group.columns["start"], group.checkpoints[place]
            low, high = min(start.min(), 0), max(start.max(), 1e-12)
            axis.plot([low, high], [low, high], color="#999999", linewidth=1)
            axis.scatter(start, total, s=5, color=_COLOURS[0], alpha=0.5, linewidths=0)
            axis.set_title(f"{group.method}\nat {place}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("relevance that entered", fontsize=9)
    figure.supylabel("relevance that arrived", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def agreement(names: Sequence[str], matrix: Array, path: Path) -> bool:
    """The mean rank correlation of each pair of methods."""
    if len(names) < 2:
        return False
    plt = _pyplot()
    side = 2.5 + 0.42 * len(names)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    for i, j in np.ndindex(*matrix.shape):
        if np.isfinite(matrix[i, j]):
            dark = abs(matrix[i, j]) > 0.6
            axis.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=5, color="w" if dark else "k")
    figure.colorbar(image, label="mean rank correlation", shrink=0.7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def scores(found: Sequence[Group], ties: Sequence[str], path: Path) -> bool:
    """The ID score of every method with its interval, a panel a tie rule."""
    shown = [group for group in found if any(group.measured(tie) for tie in ties)]
    if not shown:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(ties), figsize=(3.5 + 3.2 * len(ties), 1.4 + 0.24 * len(shown)), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    for axis, tie in zip(axes[0], ties, strict=True):
        for i, group in enumerate(shown):
            if group.measured(tie):
                e = estimate(group.score(tie))
                axis.plot([100 * e.low, 100 * e.high], [i, i], color=_COLOURS[bool(group.levels)], linewidth=2)
                axis.plot(100 * e.mean, i, "o", color=_COLOURS[bool(group.levels)], markersize=4)
        axis.axvline(0, color="#999999", linewidth=0.8)
        axis.set(title=f"ID, {TIE_NAMES[tie]}", xlabel="%")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(shown)), [title(group.method, group.levels) for group in shown], fontsize=7)
    axes[0, 0].invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def gallery(
    images: Sequence[tuple[str, npt.NDArray[Any], Mapping[str, tuple[npt.NDArray[Any], str]]]],
    methods: Sequence[str], path: Path,
) -> bool:  # fmt: skip
    """Images in rows, maps of methods in columns.

    Args:
        images: of each its caption, the picture (height, width, 3) in [0, 1], and by method its map (height, width)
            with a caption.
        methods: in the order in which they are shown.
        path: a PNG file.
    """
    if not images:
        return False
    methods = [name for name in methods if any(name in maps for _, _, maps in images)]
    lines = []
    for caption, picture, maps in images:
        cells: list[Cell | None] = [Cell(to_photo(torch.from_numpy(picture).permute(2, 0, 1)), caption)]
        for name in methods:
            cells.append(_cell(name, *maps[name]) if name in maps else None)
        lines.append(Line(cells))
    save_png(sheet(lines, side=1.2, font=5), path)
    return True


def _cell(method: str, heat: npt.NDArray[Any], text: str) -> Cell:
    heatmap = torch.from_numpy(heat).double()
    return Cell(colorize(heatmap, fitting_colors(heatmap)), f"{method}\n{text}")
