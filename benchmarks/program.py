"""The emitted program: where its time goes by kind of node, and what each optimisation of it brings."""

from dataclasses import replace
from functools import partial
from inspect import getdoc
from typing import Any

import polars as pl

import fxlrp
from benchmarks.harness import PLACEBO
from benchmarks.methods import YARDSTICK, Method, Steps, Trial, autograd, fxlrp_method
from benchmarks.models import MODELS
from benchmarks.pages import groups, in_order
from benchmarks.runs import Benchmark, every
from fxlrp.passes.optimize import EMITTED, NAMES, PASSES

FORWARD, PRODUCTS, REST = "forward", "relevance: products", "relevance: rest"
PRESETS = ("conserving", "otsuki2024")
PROFILE = ", step by step"
LEAST = 0.005
"""What is below in every model has no line of its own."""


def _profile(trial: Trial, preset: str) -> Steps:
    yield
    explainer = fxlrp.compile(trial.model, preset)

    def seconds_by_part() -> dict[str, float]:
        kinds = explainer.profile(trial.images, rounds=1).kinds
        return {f"{kind}, {what}": time / 1000 for kind, (forward, relevance) in kinds.items() for what, time in (
            (FORWARD, forward.total), (PRODUCTS, relevance.products), (REST, relevance.rest),
        ) if time}  # fmt: skip

    yield seconds_by_part


PROFILED = {YARDSTICK: Method(autograd)}
for _preset in PRESETS:
    PROFILED[_preset] = fxlrp_method(_preset, channels_last=True)
    PROFILED[_preset + PROFILE] = replace(PROFILED[_preset], steps=partial(_profile, preset=_preset), parts=True)


def by_kind(frame: pl.DataFrame) -> dict[str, Any]:
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
    large = cells.filter(pl.max_horizontal(models) >= LEAST)
    large = large.sort(pl.sum_horizontal(models), descending=True, maintain_order=True)
    sums = {
        "others": cells.join(large, on="part", how="anti"),
        "**sum of the forward pass**": cells.filter(forward),
        "**sum of relevance**": cells.filter(~forward),
        "**sum of both**": cells,
    }
    lines = [[part, *(f"{ratio:.2f}" if ratio >= LEAST else "" for ratio in ratios)] for part, *ratios in large.rows()]
    lines += [[title, *(f"{some[model].sum():.2f}" for model in models)] for title, some in sums.items()]
    lines.append(["one call, by itself", *(f"{calls[model]:.2f}" if model in calls else "" for model in models)])
    return ["kind of node", *models], lines


KINDS = Benchmark(
    "kinds", "Time every step of the optimised program, beside autograd and a whole call.", f"{__name__}:PROFILED",
    every(MODELS, (1, 8)), by_kind, rounds=5,
)  # fmt: skip

ALL = "all"
WORTH = 0.03
"""An optimisation is kept if it wins this share of time or memory beyond the placebo on any model."""
OPTIMISED = {ALL: fxlrp_method(channels_last=True), "none": fxlrp_method(channels_last=True, optimize=False)}
for _name in NAMES:
    OPTIMISED[f"without {_name}"] = fxlrp_method(channels_last=True, optimize=[name for name in NAMES if name != _name])


def by_optimisation(frame: pl.DataFrame) -> dict[str, Any]:
    """What each optimisation wins at best, the figures of all programs by model, and what the names mean."""
    frame = in_order(frame, "method", [PLACEBO, *OPTIMISED])
    figures = frame.sort("batch", maintain_order=True).join(pl.DataFrame({"what": ["time", "memory"]}), how="cross")
    figures = figures.with_columns(column=pl.format("{}, batch {}", "what", "batch"))
    told = {name: EMITTED.get(name) or getdoc(PASSES[name]) or "" for name in NAMES}
    return {
        "models": {key: rows.rows(named=True) for key, rows in groups(figures, "model", "device_name").items()},
        "described": [(name, text.partition("\n")[0]) for name, text in told.items()],
        "verdicts": _verdicts(frame),
    }


def _verdicts(frame: pl.DataFrame) -> list[list[str]]:
    """Per optimisation the largest gain on any model and batch beyond the placebo, and whether that is enough.

    Measures are time, memory held between calls, and that with what one call takes beyond it.
    """
    case, measures = ["device_name", "model", "batch"], ["ratio", "held_mb", "peak"]
    good = frame.filter(pl.col("status") == "ok").with_columns(peak=pl.col("held_mb") + pl.col("call_mb"))
    good = good.with_columns(pl.when(pl.col(measures) > 0).then(pl.col(measures)))
    default, placebo = (pl.col(measures).filter(pl.col("method") == name).first().over(case) for name in (ALL, PLACEBO))
    gains = good.with_columns((pl.col(measures) - default) / pl.col(measures) - (placebo / default - 1).abs())
    lines = []
    for name in NAMES if PLACEBO in good["method"] else ():
        rows = gains.filter(pl.col("method") == f"without {name}")
        best = [max(rows.drop_nulls(measure).select(measure, "model", "batch").rows(), default=(0.0, "", 0))
                for measure in measures]  # fmt: skip
        told = [f"{gain:+.1%} ({model}, batch {batch})" if model else "" for gain, model, batch in best]
        lines.append([name, *told, "yes" if max(best)[0] >= WORTH else "**no**"])
    return lines


OPTIMIZER = Benchmark(
    "optimizer", "Time explainers with all optimisations, with none, and without each of them.",
    f"{__name__}:OPTIMISED", every(("resnet50", "vgg16_bn", "efficientnet_b0", "vit_b_16"), (1, 8)), by_optimisation,
)  # fmt: skip
