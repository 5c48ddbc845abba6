"""How fast explanations are, beside autograd and other implementations."""

from collections.abc import Iterable
from statistics import median
from typing import Any

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import METHODS, YARDSTICK
from benchmarks.models import MODELS
from benchmarks.pages import Row, groups, in_order
from benchmarks.plots import draw
from benchmarks.runs import Benchmark, every

ORDER = [YARDSTICK, PLACEBO, *METHODS]
WAYS = {"eager": ("fxlrp eager", "fxlrp channels-last"), "compiled": ("fxlrp inductor", "fxlrp cudagraphs")}
"""The default preset, by the way it runs."""
SAME_RULES = [
    ("zennit EpsilonPlus", "fxlrp channels-last epsilon_plus"), ("zennit EpsilonPlus", "fxlrp inductor epsilon_plus"),
    ("captum LRP", "fxlrp channels-last epsilon"), ("captum LRP", "fxlrp inductor epsilon"),
    ("autolrp composite", "fxlrp channels-last epsilon_plus"), ("autolrp composite", "fxlrp inductor epsilon_plus"),
    ("lxt", "fxlrp eager cp_lrp"), ("lxt", "fxlrp inductor cp_lrp"),
]  # fmt: skip
"""Peers and the methods of fxlrp with the same rules."""
ROOFS = {
    "fxlrp eager": "forward", "fxlrp channels-last": "forward channels-last", "fxlrp inductor": "forward inductor",
    "fxlrp cudagraphs": "forward cudagraph",
}  # fmt: skip
"""By method of fxlrp, the forward pass of the same kind: three of these are the least that z⁺ takes."""


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """What the page says of each device."""
    frame = in_order(in_order(frame, "method", ORDER), "model", MODELS)
    return {"devices": [_device(name, rows) for name, rows in groups(frame, "device_name").items()], "median": median}


def quotient(row: Row | None, other: Row | None) -> float | None:
    """The time of one over that of another, each a multiple of its own run's autograd; ``None`` where one failed."""
    if row is None or other is None or row["status"] != "ok" or other["status"] != "ok":
        return None
    return row["ratio"] / other["ratio"]


def starred_quotient(row: Row | None, other: Row | None) -> str:
    """A quotient as tables tell it: starred where the two are of different runs."""
    value = quotient(row, other)
    return "" if value is None else f"{value:.2f}" + ("" if row["run"] == other["run"] else "\\*")


def _device(name: str, frame: pl.DataFrame) -> dict[str, Any]:
    models, batches = frame["model"].unique(maintain_order=True).to_list(), sorted(set(frame["batch"]))
    rows = {(row["model"], row["batch"], row["method"]): row for row in frame.iter_rows(named=True)}

    def fastest(model: str, batch: int, methods: Iterable[str]) -> Row | None:
        some = [row for method in methods if (row := rows.get((model, batch, method))) and row["status"] == "ok"]
        return min(some, key=lambda row: row["ratio"], default=None)

    for (model, batch, method), row in rows.items():
        share = quotient(rows.get((model, batch, ROOFS.get(method))), row)
        row["has_roof"], row["roof"] = method in ROOFS, share and 3 * share
        row["fastest"] = row is fastest(model, batch, (name for name in METHODS if METHODS[name].kind != "model"))
    claims, gains, alone = [], {way: [] for way in WAYS}, []
    for batch in batches:
        for model in models:
            peer = fastest(model, batch, (name for name in METHODS if METHODS[name].kind == "peer"))
            ours = {way: row for way, names in WAYS.items() if (row := fastest(model, batch, names))}
            if peer is None:
                alone += [f"{model} (batch {batch})"] if ours else []
                continue
            cells = {way: [f"{row['ratio']:.2f} ({row['method'].removeprefix('fxlrp ')})", starred_quotient(peer, row)]
                     for way, row in ours.items()}  # fmt: skip
            told = [cell for way in WAYS for cell in cells.get(way, ["", ""])]
            claims.append([model, batch, peer["method"], f"{peer['ratio']:.2f}", *told])
            for way, row in ours.items():
                gains[way].append(quotient(peer, row))
    same_rules = []
    for peer, ours in SAME_RULES:
        for batch in batches:
            pairs = [(rows.get((model, batch, peer)), rows.get((model, batch, ours))) for model in models]
            cells = ["peer fails" if other and other["status"] != "ok" else starred_quotient(other, row)
                     for other, row in pairs]  # fmt: skip
            if any(cells) and any(row for _, row in pairs):
                same_rules.append([peer, ours, batch, *cells])
    throughput = []
    for method in METHODS:
        cells = [[row for batch in batches if (row := fastest(model, batch, [method]))] for model in models]
        throughput += [[method, *map(_speeds, cells)]] if any(cells) else []
    by_batch = {batch: sorted((row for row in rows.values() if row["batch"] == batch),
                              key=lambda row: ORDER.index(row["method"])) for batch in batches}  # fmt: skip
    return {"name": name, "models": models, "batches": by_batch, "claims": claims, "gains": gains, "alone": alone,
            "same_rules": same_rules, "throughput": throughput}  # fmt: skip


def _speeds(rows: list[Row]) -> str:
    """The time of one image, and the most images per second."""
    single = [f"{1000 * row['seconds']:.1f} ms" for row in rows if row["batch"] == 1]
    rates = [(row["batch"] / row["seconds"], str(row["batch"])) for row in rows]
    return ", ".join([*single, *(["{:.1f}/s ({})".format(*max(rates))] if rates else [])])


def _panels(frame: pl.DataFrame) -> dict[tuple[str, str], pl.DataFrame]:
    frame = in_order(frame, "model", MODELS).sort("batch", maintain_order=True).with_columns(value=pl.col("model"))
    return {(device, f"batch {batch}"): rows for (device, batch), rows in groups(frame, "device_name", "batch").items()}


BENCHMARK = Benchmark(
    "speed", "Time models, explanations of them, and peers.", "benchmarks.methods", every(MODELS, (1, 8, 32)), context,
    draw=lambda frame, path: draw(_panels(frame), path, columns=1),
)  # fmt: skip
