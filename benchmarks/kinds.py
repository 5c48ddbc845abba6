"""Where the time of an explanation goes, by kind of node."""

from collections.abc import Iterator
from typing import Any

import polars as pl

import fxlrp
from benchmarks.methods import YARDSTICK, Method, Trial, autograd, fxlrp_method
from benchmarks.models import MODELS
from benchmarks.pages import groups, in_order
from benchmarks.runs import Benchmark, every

FORWARD, PRODUCTS, REST = "forward", "relevance: products", "relevance: rest"
PRESETS = ("conserving", "otsuki2024")
PROFILE = ", step by step"
_LEAST = 0.005
"""What is below in every model has no line of its own."""


def _profile(preset: str) -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        yield
        explainer = fxlrp.compile(trial.model, preset)

        def seconds_by_part() -> dict[str, float]:
            parts = {}
            for kind, (forward, relevance) in explainer.profile(trial.images, rounds=1).kinds.items():
                spent = {FORWARD: forward.total, PRODUCTS: relevance.products, REST: relevance.rest}
                parts |= {f"{kind}, {what}": time / 1000 for what, time in spent.items() if time}
            return parts

        yield seconds_by_part

    return Method(steps, "fxlrp", "fxlrp", channels_last=True, parts=True)


METHODS = {YARDSTICK: Method(autograd, "model")}
for _preset in PRESETS:
    METHODS |= {_preset: fxlrp_method(_preset, channels_last=True), _preset + PROFILE: _profile(_preset)}


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """One table per device, preset and batch."""
    frame = in_order(frame.filter(pl.col("status") == "ok"), "model", MODELS)
    frame = frame.with_columns(preset=pl.col("method").str.replace(PROFILE, "", literal=True))
    frame = frame.filter(pl.col("preset").is_in(PRESETS)).sort("preset", "batch", maintain_order=True)
    return {"tables": [(key, *_table(rows)) for key, rows in groups(frame, "device_name", "preset", "batch").items()]}


def _table(rows: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    step_by_step = pl.col("method") != pl.col("preset")
    calls = dict(rows.filter(~step_by_step).select("model", "ratio").rows())
    # The part "" is the whole of the step-by-step run.
    cells = rows.filter(step_by_step, pl.col("part") != "").pivot("model", index="part", values="ratio").fill_null(0.0)
    models, forward = cells.columns[1:], pl.col("part").str.ends_with(f", {FORWARD}")
    large = cells.filter(pl.max_horizontal(models) >= _LEAST)
    large = large.sort(pl.sum_horizontal(models), descending=True, maintain_order=True)
    sums = {
        "others": cells.join(large, on="part", how="anti"),
        "**sum of the forward pass**": cells.filter(forward),
        "**sum of relevance**": cells.filter(~forward),
        "**sum of both**": cells,
    }
    lines = [[part, *(f"{ratio:.2f}" if ratio >= _LEAST else "" for ratio in ratios)] for part, *ratios in large.rows()]
    lines += [[title, *(f"{some[model].sum():.2f}" for model in models)] for title, some in sums.items()]
    lines.append(["one call, by itself", *(f"{calls[model]:.2f}" if model in calls else "" for model in models)])
    return ["kind of node", *models], lines


BENCHMARK = Benchmark(
    "kinds", "Time every step of the optimised program, beside autograd and a whole call.", f"{__name__}:METHODS",
    every(MODELS, (1, 8)), context, rounds=5,
)  # fmt: skip
