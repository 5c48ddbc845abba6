"""results.png: the time of each method as a multiple of autograd's, a panel a device and batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed_sheet import Sheet, number, sheets
from benchmarks.table import Row

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


def draw(rows: Iterable[Row], path: Path) -> bool:
    """Draw what was measured; whether there was anything."""
    panels = [(sheet, batch) for sheet in sheets(rows) for batch in sheet.batches]
    panels = [(sheet, batch) for sheet, batch in panels if any(_bars(sheet, batch, name) for name in COLOURS)]
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    widest = max(len(sheet.models) for sheet, _ in panels)
    figure, axes = plt.subplots(
        len(panels), figsize=(3 + 1.5 * widest, 3.0 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (sheet, batch) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, sheet, batch)
    handles: dict[str, Any] = {}
    for axis in axes[:, 0]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    names = [name for name in (*COLOURS, "autograd") if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _panel(ax: Any, sheet: Sheet, batch: int) -> None:
    drawn = {model: [name for name in COLOURS if sheet.best(model, batch, [name])] for model in sheet.models}
    width = 0.85 / max(map(len, drawn.values()))
    for name, colour in COLOURS.items():
        bars = _bars(sheet, batch, name)
        if not bars:
            continue
        offsets = []
        for place, row in bars.items():
            # Those of a model are centred at its tick, whichever they are.
            beside = drawn[row["model"]]
            offsets.append(place + (beside.index(name) - (len(beside) - 1) / 2) * width)
        middle, least, most = ([number(row, column) for row in bars.values()]
                               for column in ("ratio", "ratio_min", "ratio_max"))  # fmt: skip
        reach = [[m - low for m, low in zip(middle, least, strict=True)],
                 [high - m for m, high in zip(middle, most, strict=True)]]  # fmt: skip
        ax.bar(
            offsets, middle, width, yerr=reach, label=name, color=colour, edgecolor="black", linewidth=0.5,
            hatch="//" if name.startswith("fxlrp") else "", error_kw={"linewidth": 0.8},
        )  # fmt: skip
    ax.axhline(1, color="black", linewidth=1, linestyle="--", label="autograd")
    ratio_axis(ax)
    ax.set_title(f"batch {batch}, {sheet.name}", fontsize=10)
    ax.set_ylabel("time / autograd")
    ax.set_xticks(range(len(sheet.models)), sheet.models)


def ratio_axis(ax: Any) -> None:
    """Logarithmic, with powers of two as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(LogLocator(base=2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _bars(sheet: Sheet, batch: int, method: str) -> dict[int, Row]:
    """By the place of its model, what was measured."""
    found = {place: sheet.best(model, batch, [method]) for place, model in enumerate(sheet.models)}
    return {place: row for place, row in found.items() if row is not None}
