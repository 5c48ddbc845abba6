"""Pictures of what was timed: ratios to autograd on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.models import MODELS
from benchmarks.pages import Row, groups, in_order

# The colours of Okabe and Ito, which differ for every kind of colour vision; those of fxlrp are hatched as well.
COLOURS = {
    "fxlrp eager": "#56B4E9",
    "fxlrp channels-last": "#0072B2",
    "fxlrp inductor": "#009E73",
    "fxlrp cudagraphs": "#009E73",
    "captum LRP": "#F0E442",
    "autolrp": "#E69F00",
    "autolrp composite": "#D55E00",
    "zennit EpsilonPlus": "#CC79A7",
    "lxt": "#999999",
}


def draw_speed(frame: pl.DataFrame, path: Path) -> bool:
    """One panel of bars per device and batch."""
    panels = groups(_drawable(in_order(frame, "model", MODELS)).sort("batch", maintain_order=True), "device_name", "batch")
    if not panels:
        return False
    widest = max(rows["model"].n_unique() for rows in panels.values())
    figure, axes = _figure(len(panels), 1, 3 + 1.5 * widest, 3.0 * len(panels))
    for ax, ((device, batch), rows) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(ax, list(rows.iter_rows(named=True)))
        ax.set_title(f"batch {batch}, {device}", fontsize=10)
        ax.set_ylabel("time / autograd")
    _save(figure, axes, path, columns=5)
    return True


def draw_scaling(axes_rows: dict[tuple[str, str], pl.DataFrame], path: Path) -> bool:
    """One panel of lines per device and axis; by the title and the label of each axis the rows with their ``value``."""
    shown = {axis: rows for axis, frame in axes_rows.items() if len(rows := _drawable(frame))}
    devices = list(dict.fromkeys(name for rows in shown.values() for name in rows["device_name"]))
    if not shown:
        return False
    figure, axes = _figure(len(devices), len(shown), 1 + 4 * len(shown), 1 + 3.4 * len(devices), sharey=True)
    for line, device in zip(axes, devices, strict=True):
        for ax, ((title, label), frame) in zip(line, shown.items(), strict=True):
            rows = frame.filter(pl.col("device_name") == device).sort("value")
            for (name, colour), marker in zip(COLOURS.items(), "osDDv^<>P", strict=True):
                own = rows.filter(pl.col("method") == name)
                if len(own):
                    ax.plot(own["value"], own["ratio"], marker=marker, color=colour, label=name)
            _ratio_axis(ax)
            ax.set_xscale("log", base=2)
            ax.set_xticks(values := sorted(set(rows["value"])), list(map(str, values)))
            ax.minorticks_off()
            ax.set_xlabel(label)
            ax.set_title(title, fontsize=9)
        line[0].set_ylabel(f"time / autograd, {device}")
    _save(figure, axes, path, columns=4)
    return True


def _drawable(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("status") == "ok", pl.col("method").is_in(list(COLOURS)))


def _bars(ax: Any, rows: Sequence[Row]) -> None:
    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = {model: [name for name in COLOURS if any(row["model"] == model and row["method"] == name for row in rows)]
               for model in models}  # fmt: skip
    width = 0.85 / max(map(len, methods.values()))
    for name, colour in COLOURS.items():
        own = [row for row in rows if row["method"] == name]
        if not own:
            continue
        offsets = []
        for row in own:  # the bars of a model are centred at its tick, whichever they are
            beside = methods[row["model"]]
            offsets.append(models.index(row["model"]) + (beside.index(name) - (len(beside) - 1) / 2) * width)
        middle = [row["ratio"] for row in own]
        reach = [[row["ratio"] - row["ratio_min"] for row in own], [row["ratio_max"] - row["ratio"] for row in own]]
        ax.bar(offsets, middle, width, yerr=reach, label=name, color=colour, edgecolor="black", linewidth=0.5,
               hatch="//" if name.startswith("fxlrp") else "", error_kw={"linewidth": 0.8})  # fmt: skip
    ax.set_xticks(range(len(models)), models)
    _ratio_axis(ax)


def _ratio_axis(ax: Any) -> None:
    """Logarithmic, with powers of two as plain numbers, and a line at autograd."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.axhline(1, color="black", linewidth=1, linestyle="--", label="autograd")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(LogLocator(base=2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _save(figure: Any, axes: Any, path: Path, columns: int) -> None:
    handles = {name: handle for ax in axes.flat for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [name for name in (*COLOURS, "autograd") if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=110)
