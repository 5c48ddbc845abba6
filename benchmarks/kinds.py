"""Where the time of an explanation goes, by kind of node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import polars as pl

import fxlrp
from benchmarks.methods import METHODS as ALL
from benchmarks.methods import YARDSTICK, Method, Trial, fxlrp_method
from benchmarks.models import MODELS
from benchmarks.pages import Section, groups, in_order
from benchmarks.runs import Benchmark, every

FORWARD, PRODUCTS, REST = "forward", "relevance: products", "relevance: rest"
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
                parts |= {f"{kind}, {what}": milliseconds / 1000 for what, milliseconds in spent.items() if milliseconds}
            return parts

        yield seconds_by_part

    return Method(steps, "fxlrp", "fxlrp", channels_last=True, parts=True)


METHODS = {YARDSTICK: ALL[YARDSTICK]}
for _preset in ("conserving", "otsuki2024"):
    METHODS |= {_preset: fxlrp_method(_preset, channels_last=True), _preset + PROFILE: _profile(_preset)}


def sections(frame: pl.DataFrame) -> Iterator[Section]:
    """One table per preset, batch and device."""
    frame = in_order(frame.filter(pl.col("status") == "ok"), "model", MODELS)
    frame = frame.with_columns(preset=pl.col("method").str.replace(PROFILE, "", literal=True))
    presets = frame.filter(~pl.col("preset").is_in([YARDSTICK, "placebo"])).sort("preset", "batch", maintain_order=True)
    for (device, preset, batch), rows in groups(presets, "device_name", "preset", "batch").items():
        models = list(rows["model"].unique(maintain_order=True))
        cells: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows.filter(pl.col("part") != "").iter_rows(named=True):
            cells[row["part"]][row["model"]] = row["ratio"]
        large = {part: values for part, values in cells.items() if max(values.values()) >= _LEAST}
        order = sorted(large, key=lambda part: -sum(large[part].values()))
        lines = [[part, *(f"{value:.2f}" if (value := large[part].get(model, 0)) >= _LEAST else "" for model in models)]
                 for part in order]  # fmt: skip
        small = set(cells) - set(large)
        forward = {part for part in cells if part.endswith(f", {FORWARD}")}
        for title, parts in (("others", small), ("**sum of the forward pass**", forward),
                             ("**sum of relevance**", set(cells) - forward), ("**sum of both**", set(cells))):  # fmt: skip
            lines.append([title, *(f"{sum(cells[part].get(model, 0) for part in parts):.2f}" for model in models)])
        calls = {row["model"]: row["ratio"] for row in rows.filter(pl.col("method") == preset).iter_rows(named=True)
                 if row["part"] == ""}  # fmt: skip
        lines.append(["one call, by itself", *(f"{calls[model]:.2f}" if model in calls else "" for model in models)])
        yield Section(f"{preset}, batch {batch}, {device}", columns=["kind of node", *models], lines=lines, level=2)


BENCHMARK = Benchmark(
    "kinds", "Time every step of the optimised program, beside autograd and a whole call.", "benchmarks.kinds",
    every(MODELS, (1, 8)), sections, rounds=5,
)  # fmt: skip
