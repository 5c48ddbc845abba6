"""How fast explanations are, beside autograd and other implementations; and how that grows with what is explained."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import PEERS, YARDSTICK, Case, Method, autograd, forward, forward_replayed, fxlrp_method
from benchmarks.models import MODELS
from benchmarks.pages import Panels, groups, in_order
from benchmarks.runs import Benchmark, every, listed
from benchmarks.workers import Row

CHANNELS_LAST = {"channels_last": True}
INDUCTOR = {"channels_last": True, "backend": "inductor"}
METHODS = {
    YARDSTICK: Method(autograd),
    "forward": Method(forward),
    "forward channels-last": Method(forward, channels_last=True),
    "forward inductor": Method(partial(forward, compiled=True), channels_last=True),
    "forward cudagraph": Method(forward_replayed, channels_last=True, device="cuda"),
    "fxlrp eager": fxlrp_method(),
    "fxlrp channels-last": fxlrp_method(**CHANNELS_LAST),
    "fxlrp inductor": fxlrp_method(**INDUCTOR),
    "fxlrp cudagraphs": fxlrp_method(**CHANNELS_LAST, device="cuda", backend="cudagraphs"),
    "fxlrp channels-last evidence": fxlrp_method("evidence", **CHANNELS_LAST),
    "fxlrp channels-last otsuki2024": fxlrp_method("otsuki2024", **CHANNELS_LAST),
    "fxlrp inductor otsuki2024": fxlrp_method("otsuki2024", **INDUCTOR),
    "fxlrp channels-last epsilon_plus": fxlrp_method("epsilon_plus", **CHANNELS_LAST),
    "fxlrp channels-last epsilon": fxlrp_method("epsilon", **CHANNELS_LAST),
    "fxlrp inductor epsilon_plus": fxlrp_method("epsilon_plus", **INDUCTOR),
    "fxlrp inductor epsilon": fxlrp_method("epsilon", **INDUCTOR),
    "fxlrp eager cp_lrp": fxlrp_method("cp_lrp", models="vit_*"),
    "fxlrp inductor cp_lrp": fxlrp_method("cp_lrp", models="vit_*", backend="inductor"),
    "zennit EpsilonPlus": PEERS["zennit EpsilonPlus"],
    "captum LRP": PEERS["captum"],
    "autolrp": PEERS["autolrp"],
    "autolrp composite": PEERS["autolrp composite"],
    "lxt": PEERS["lxt"],
}
WAYS = {"eager": ("fxlrp eager", "fxlrp channels-last"), "compiled": ("fxlrp inductor", "fxlrp cudagraphs")}
"""The preset ``conserving``, by the way it runs."""
SAME_RULES = {
    "zennit EpsilonPlus": "epsilon_plus", "captum LRP": "epsilon", "autolrp composite": "epsilon_plus", "lxt": "cp_lrp",
}  # fmt: skip
"""By peer the preset with the same rules."""
ROOFS = {
    "fxlrp eager": "forward", "fxlrp channels-last": "forward channels-last", "fxlrp inductor": "forward inductor",
    "fxlrp cudagraphs": "forward cudagraph",
}  # fmt: skip
"""By method of fxlrp, the forward pass of the same kind: three of these are the least that z⁺ takes."""

AXES = {
    ("Depth: residual networks for 32 × 32 pictures, batch 4", "layers"):
        {Case(f"cifar_resnet{depth}", 4, 32): depth for depth in (20, 56, 110, 302, 602, 1202)},
    ("Resolution: resnet50, batch 1", "height and width"):
        {Case("resnet50", 1, size): size for size in (112, 224, 448, 896)},
    ("Batch: resnet50, 224 × 224", "batch"): {Case("resnet50", batch, 224): batch for batch in (1, 2, 4, 8, 16, 32)},
}  # fmt: skip
"""By title and label, what grows while all else stays as it is: the values by case."""
GROWING = ("forward", "fxlrp eager", "fxlrp channels-last", "captum LRP", "autolrp composite", "zennit EpsilonPlus")


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """What the page says of each device."""
    frame = in_order(in_order(frame, "model", MODELS), "method", [PLACEBO, *METHODS])
    devices = [_device(name, rows) for name, rows in groups(frame, "device_name").items()]
    return {"devices": devices, "median": median, "quotient": starred_quotient, "speeds": speeds}


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

    peers = [name for name, method in METHODS.items() if method.package not in ("torch", "fxlrp")]
    explanations = [name for name, method in METHODS.items() if method.package != "torch"]
    for (model, batch, method), row in rows.items():
        share = quotient(rows.get((model, batch, ROOFS.get(method))), row)
        row["has_roof"], row["roof"] = method in ROOFS, share and 3 * share
        row["fastest"] = row is fastest(model, batch, explanations)
    cases = [(f"{model} (batch {batch})", *(fastest(model, batch, names) for names in (peers, *WAYS.values())))
             for batch, model in product(batches, models)]  # fmt: skip
    same_rules = []
    alike = [(peer, ours) for peer, preset in SAME_RULES.items() for ours in METHODS if ours.endswith(f" {preset}")]
    for (peer, ours), batch in product(alike, batches):
        pairs = [(rows.get((model, batch, peer)), rows.get((model, batch, ours))) for model in models]
        cells = ["peer fails" if other and other["status"] != "ok" else starred_quotient(other, row)
                 for other, row in pairs]  # fmt: skip
        if any(cells) and any(row for _, row in pairs):
            same_rules.append([peer, ours, batch, *cells])
    timed = frame.filter(pl.col("status") == "ok", pl.col("method").is_in([*METHODS]))
    timed = timed.group_by("method", "model", "status", maintain_order=True).agg("batch", "seconds")
    return {
        "name": name, "models": models.to_list(), "claims": [(peer, ours) for _, peer, *ours in cases if peer],
        "alone": [case for case, peer, *ours in cases if not peer and any(ours)], "same_rules": same_rules,
        "batches": {batch: [row for row in rows.values() if row["batch"] == batch] for batch in batches},
        "gains": {way: [quotient(peer, ours[place]) for _, peer, *ours in cases if peer and ours[place]]
                  for place, way in enumerate(WAYS)},
        "timed": timed.rows(named=True),
    }  # fmt: skip


def speeds(row: Row) -> str:
    """The time of one image, and the most images per second."""
    times = dict(zip(row["batch"], row["seconds"], strict=True))
    single = [f"{1000 * times[1]:.1f} ms"] if 1 in times else []
    rate, batch = max((batch / seconds, batch) for batch, seconds in times.items())
    return ", ".join([*single, f"{rate:.1f}/s ({batch})"])


def by_batch(frame: pl.DataFrame) -> Panels:
    """By device and batch the rows, with their model on the axis."""
    frame = in_order(frame, "model", MODELS).sort("batch", maintain_order=True).with_columns(value=pl.col("model"))
    return {(device, f"batch {batch}"): rows for (device, batch), rows in groups(frame, "device_name", "batch").items()}


def on_axes(frame: pl.DataFrame) -> dict[tuple[str, str, str], pl.DataFrame]:
    """By device, title and label the rows, with their ``value`` on the axis."""
    places = pl.DataFrame([
        {**asdict(case), "title": title, "label": label, "value": value}
        for (title, label), cases in AXES.items() for case, value in cases.items()
    ])  # fmt: skip
    rows = in_order(frame, "method", [PLACEBO, *METHODS])
    placed = rows.join(places, on=["model", "batch", "size", "variant"], maintain_order="right_left")
    return groups(placed.sort("device_name", maintain_order=True), "device_name", "title", "label")


def scaling_context(frame: pl.DataFrame) -> dict[str, Any]:
    """What the page says of each device and axis: the rows, and once more those of fxlrp for its set-up."""
    axes = {}
    for axis, rows in on_axes(frame).items():
        ours = rows.filter(pl.col("method") == "fxlrp eager", pl.col("status") == "ok")
        axes[axis] = pl.concat([rows, ours.with_columns(method=pl.lit("set-up, fxlrp eager"))]).rows(named=True)
    return {"axes": axes}


SPEED = Benchmark(
    "speed", "Time models, explanations of them, and peers.", f"{__name__}:METHODS", every(MODELS, (1, 8, 32)),
    context, panels=by_batch,
)  # fmt: skip
SCALING = Benchmark(
    "scaling", "Time explanations while depth, resolution or batch grows.", f"{__name__}:METHODS",
    listed(*dict.fromkeys(case for cases in AXES.values() for case in cases)), scaling_context, default=GROWING,
    panels=lambda frame: {key[:2]: rows for key, rows in on_axes(frame).items()},
)  # fmt: skip
