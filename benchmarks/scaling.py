"""How the cost of an explanation grows with depth, resolution and batch."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from benchmarks.methods import METHODS, YARDSTICK, Case
from benchmarks.pages import Row, Section, grid, groups, in_order, ratio
from benchmarks.plots import draw_scaling
from benchmarks.runs import Benchmark, listed

AXES = {
    "layers": ("Depth: residual networks for 32 × 32 images, batch 4",
               {Case(f"cifar_resnet{depth}", 4, 32): depth for depth in (20, 56, 110, 302, 602, 1202)}),
    "height and width": ("Resolution: resnet50, batch 1",
                         {Case("resnet50", 1, size): size for size in (112, 224, 448, 896)}),
    "batch": ("Batch: resnet50, 224 × 224", {Case("resnet50", batch, 224): batch for batch in (1, 2, 4, 8, 16, 32)}),
}  # fmt: skip
"""By what grows while all else stays as it is: a title, and the values by case."""

TIMED = ("forward", "fxlrp eager", "fxlrp channels-last", "captum LRP", "autolrp composite", "zennit EpsilonPlus")


def sections(frame: pl.DataFrame) -> Iterator[Section]:
    """Per device one table per axis."""
    for device, rows in groups(in_order(frame, "method", METHODS), "device_name").items():
        yield Section(device, level=2)
        for label, (title, _) in AXES.items():
            placed = sorted(on_axis(rows, label).iter_rows(named=True), key=lambda row: row["value"])
            set_up = {row["value"]: f"{row['setup_s']:.2f} + {row['first_s']:.2f}" for row in placed
                      if row["method"] == "fxlrp eager" and row["status"] == "ok"}  # fmt: skip
            if placed:
                methods = [name for name in ("placebo", *METHODS) if name in rows["method"]]
                table = grid(sorted(placed, key=lambda row: methods.index(row["method"])), "value", "method", _cell, label)
                lines = [[*line, set_up.get(line[0], "")] for line in sorted(table["lines"], key=lambda line: line[0])]
                yield Section(title, columns=[*table["columns"], "set-up, fxlrp eager"], lines=lines)


def on_axis(frame: pl.DataFrame, label: str) -> pl.DataFrame:
    """The rows of the cases on an axis, with their ``value`` on it."""
    places = pl.DataFrame([{"model": case.model, "batch": case.batch, "size": case.size, "value": value}
                           for case, value in AXES[label][1].items()])  # fmt: skip
    return frame.join(places, on=["model", "batch", "size"], how="inner", maintain_order="left")


def _cell(row: Row) -> str:
    return f"{row['seconds']:.3g} s" if row["method"] == YARDSTICK else ratio(row)


BENCHMARK = Benchmark(
    "scaling", "Time explanations while depth, resolution or batch grows.", "benchmarks.methods",
    listed(*dict.fromkeys(case for _, cases in AXES.values() for case in cases)), sections, default=TIMED,
    draw=lambda frame, path: draw_scaling({(title, label): on_axis(frame, label)
                                           for label, (title, _) in AXES.items()}, path),
)  # fmt: skip
