"""Pictures of what was timed: ratios to autograd on a logarithmic axis."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

# The colours of Okabe and Ito, which differ for every kind of colour vision, and markers.
STYLES = {
    "fxlrp eager": ("#56B4E9", "o"), "fxlrp channels-last": ("#0072B2", "s"), "fxlrp inductor": ("#009E73", "D"),
    "fxlrp cudagraphs": ("#009E73", "P"), "captum LRP": ("#F0E442", "v"), "autolrp": ("#E69F00", "^"),
    "autolrp composite": ("#D55E00", "<"), "zennit EpsilonPlus": ("#CC79A7", ">"), "lxt": ("#999999", "X"),
}  # fmt: skip


def draw(panels: Mapping[tuple[str, str], pl.DataFrame], path: Path, columns: int) -> bool:
    """Draw one panel per device and title, with the least and largest ratio; return whether there was anything to draw.

    Args:
        panels: by device and title the rows, with their ``value`` on the axis: a number, drawn as lines, or a name.
        path: of the picture.
        columns: how many panels stand side by side.
    """
    from matplotlib.figure import Figure

    known = pl.col("status") == "ok", pl.col("method").is_in(list(STYLES))
    panels = {key: rows for key, frame in panels.items() if len(rows := frame.filter(*known))}
    if not panels:
        return False
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + (4 if columns > 1 else 12) * columns, 1 + 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for ax, ((device, title), rows) in zip(axes, panels.items(), strict=False):
        values, names = list(rows["value"].unique(maintain_order=True)), isinstance(rows["value"][0], str)
        methods = [name for name in STYLES if name in rows["method"]]
        for index, name in enumerate(methods):
            own, (colour, marker) = rows.filter(pl.col("method") == name), STYLES[name]
            # What stands at a name stands side by side.
            shift = (index - (len(methods) - 1) / 2) * 0.8 / len(methods)
            at = [values.index(value) + shift for value in own["value"]] if names else own["value"]
            ax.errorbar(at, own["ratio"], yerr=[own["ratio"] - own["ratio_min"], own["ratio_max"] - own["ratio"]],
                        label=name, color=colour, marker=marker, linestyle="" if names else "-")  # fmt: skip
        ax.axhline(1, color="black", linewidth=1, linestyle="--", label="autograd")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")  # powers of two as numbers
        if not names:
            ax.set_xscale("log", base=2)
        values = values if names else sorted(values)
        ax.set_xticks(range(len(values)) if names else values, list(map(str, values)))
        ax.minorticks_off()
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(f"time / autograd, {device}")
    handles = {name: handle for ax in figure.axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    return True
