"""How fast explanations are, beside autograd and other implementations."""

from collections.abc import Iterable
from itertools import product
from statistics import median
from typing import Any

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import METHODS, YARDSTICK
from benchmarks.models import MODELS
from benchmarks.pages import groups, in_order
from benchmarks.plots import draw
from benchmarks.runs import Benchmark, every
from benchmarks.workers import Row

ORDER = [YARDSTICK, PLACEBO, *METHODS]
WAYS = {"eager": ("fxlrp eager", "fxlrp channels-last"), "compiled": ("fxlrp inductor", "fxlrp cudagraphs")}
"""The preset ``conserving``, by the way it runs."""
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
    frame = in_order(in_order(frame, "model", MODELS), "method", ORDER)
    devices = [_device(name, rows) for name, rows in groups(frame, "device_name").items()]
    return {"devices": devices, "median": median, "quotient": starred_quotient}


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
    models, batches = in_order(frame, "model", MODELS)["model"].unique(maintain_order=True), sorted(set(frame["batch"]))
    rows = {(row["model"], row["batch"], row["method"]): row for row in frame.iter_rows(named=True)}

    def fastest(model: str, batch: int, methods: Iterable[str]) -> Row | None:
        some = [row for method in methods if (row := rows.get((model, batch, method))) and row["status"] == "ok"]
        return min(some, key=lambda row: row["ratio"], default=None)

    peers = [name for name, method in METHODS.items() if method.kind == "peer"]
    explanations = [name for name, method in METHODS.items() if method.kind != "model"]
    for (model, batch, method), row in rows.items():
        share = quotient(rows.get((model, batch, ROOFS.get(method))), row)
        row["has_roof"], row["roof"] = method in ROOFS, share and 3 * share
        row["fastest"] = row is fastest(model, batch, explanations)
    claims, alone = [], []
    for batch, model in product(batches, models):
        peer, ours = fastest(model, batch, peers), [fastest(model, batch, names) for names in WAYS.values()]
        if peer:
            claims.append((peer, ours))
        elif any(ours):
            alone.append(f"{model} (batch {batch})")
    same_rules = []
    for (peer, ours), batch in product(SAME_RULES, batches):
        pairs = [(rows.get((model, batch, peer)), rows.get((model, batch, ours))) for model in models]
        cells = ["peer fails" if other and other["status"] != "ok" else starred_quotient(other, row)
                 for other, row in pairs]  # fmt: skip
        if any(cells) and any(row for _, row in pairs):
            same_rules.append([peer, ours, batch, *cells])
    timed = groups(frame.filter(pl.col("status") == "ok", pl.col("method").is_in([*METHODS])), "method", "model")
    return {
        "name": name, "models": models.to_list(), "claims": claims, "alone": alone, "same_rules": same_rules,
        "batches": {batch: [row for row in rows.values() if row["batch"] == batch] for batch in batches},
        "gains": {way: [quotient(peer, ours[place]) for peer, ours in claims if ours[place]]
                  for place, way in enumerate(WAYS)},
        "throughput": [{"method": method, "model": model, "status": "ok", "speeds": _speeds(some)}
                       for (method, model), some in timed.items()],
    }  # fmt: skip


def _speeds(rows: pl.DataFrame) -> str:
    """The time of one image, and the most images per second."""
    single = [f"{1000 * seconds:.1f} ms" for seconds in rows.filter(pl.col("batch") == 1)["seconds"]]
    rate, batch = max((batch / seconds, str(batch)) for batch, seconds in rows.select("batch", "seconds").rows())
    return ", ".join([*single, f"{rate:.1f}/s ({batch})"])


def _panels(frame: pl.DataFrame) -> dict[tuple[str, str], pl.DataFrame]:
    frame = in_order(frame, "model", MODELS).sort("batch", maintain_order=True).with_columns(value=pl.col("model"))
    return {(device, f"batch {batch}"): rows for (device, batch), rows in groups(frame, "device_name", "batch").items()}


BENCHMARK = Benchmark(
    "speed", "Time models, explanations of them, and peers.", "benchmarks.methods", every(MODELS, (1, 8, 32)), context,
    draw=lambda frame, path: draw(_panels(frame), path, columns=1),
)  # fmt: skip
