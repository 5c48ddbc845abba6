"""How the cost of an explanation grows with depth, resolution and batch."""

from dataclasses import asdict
from typing import Any

import polars as pl

from benchmarks.methods import Case
from benchmarks.pages import groups, in_order
from benchmarks.plots import draw
from benchmarks.runs import Benchmark, listed
from benchmarks.speed import ORDER

AXES = {
    ("Depth: residual networks for 32 × 32 pictures, batch 4", "layers"):
        {Case(f"cifar_resnet{depth}", 4, 32): depth for depth in (20, 56, 110, 302, 602, 1202)},
    ("Resolution: resnet50, batch 1", "height and width"):
        {Case("resnet50", 1, size): size for size in (112, 224, 448, 896)},
    ("Batch: resnet50, 224 × 224", "batch"): {Case("resnet50", batch, 224): batch for batch in (1, 2, 4, 8, 16, 32)},
}  # fmt: skip
"""By title and label, what grows while all else stays as it is: the values by case."""
TIMED = ("forward", "fxlrp eager", "fxlrp channels-last", "captum LRP", "autolrp composite", "zennit EpsilonPlus")


def on_axes(frame: pl.DataFrame) -> dict[tuple[str, str, str], pl.DataFrame]:
    """By device, title and label the rows, with their ``value`` on the axis."""
    found = {}
    for device, rows in groups(in_order(frame, "method", ORDER), "device_name").items():
        for axis, cases in AXES.items():
            values = pl.DataFrame([{**asdict(case), "value": value} for case, value in cases.items()])
            placed = rows.join(values, on=["model", "batch", "size", "variant"], maintain_order="left")
            found[(device, *axis)] = placed.sort("value", maintain_order=True)
    return found


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """What the page says of each device and axis: the rows, and once more those of fxlrp for its set-up."""
    devices: dict[str, Any] = {}
    for (device, *axis), rows in on_axes(frame).items():
        ours = rows.filter(pl.col("method") == "fxlrp eager", pl.col("status") == "ok")
        both = pl.concat([rows, ours.with_columns(method=pl.lit("set-up, fxlrp eager"))])
        devices.setdefault(device, {})[tuple(axis)] = both.rows(named=True)
    return {"devices": devices}


BENCHMARK = Benchmark(
    "scaling", "Time explanations while depth, resolution or batch grows.", "benchmarks.methods",
    listed(*dict.fromkeys(case for cases in AXES.values() for case in cases)), context, default=TIMED,
    draw=lambda frame, path: draw({key[:2]: rows for key, rows in on_axes(frame).items()}, path, columns=len(AXES)),
)  # fmt: skip
