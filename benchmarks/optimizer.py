"""What each optimisation of the emitted program brings."""

from collections.abc import Callable, Iterator
from inspect import getdoc
from typing import Any

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import Method, fxlrp_method
from benchmarks.pages import groups, in_order
from benchmarks.runs import Benchmark, every
from benchmarks.workers import Row
from fxlrp.passes.optimize import DEFAULT, EMITTED, NAMES, PASSES

ALL = "all"
MODELS = ("resnet50", "vgg16_bn", "efficientnet_b0", "vit_b_16")
WORTH = 0.03
"""An optimisation is kept if it wins this share of time or memory beyond the placebo on any model."""
MEASURES = (
    lambda row: row["ratio"],
    lambda row: row["held_mb"],
    lambda row: row["held_mb"] and row["held_mb"] + row["call_mb"],
)
"""Of a row: time, memory held between calls, and that with what one call takes beyond it."""


def variants() -> dict[str, Method]:
    """Programs with all optimisations, with none, without one, and with one more than the default ones."""
    chosen: dict[str, bool | list[str]] = {ALL: True, "none": False}
    chosen |= {variant(name): [other for other in NAMES if (other in DEFAULT) != (other == name)] for name in NAMES}
    return {name: fxlrp_method(channels_last=True, optimize=names) for name, names in chosen.items()}


def variant(name: str) -> str:
    """The program that differs from the default one by this optimisation."""
    return f"{'without' if name in DEFAULT else 'with'} {name}"


METHODS = variants()


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """What each optimisation wins at best, the figures of all programs by model, and what the names mean."""
    frame = in_order(frame, "method", [ALL, PLACEBO, *METHODS])
    models = {key: [{**row, "what": what, "column": f"{what}, batch {row['batch']}"}
                    for row in rows.sort("batch", maintain_order=True).iter_rows(named=True)
                    for what in ("time", "memory")]
              for key, rows in groups(frame, "model", "device_name").items()}  # fmt: skip
    told = {name: EMITTED.get(name) or getdoc(PASSES[name]) or "" for name in NAMES}
    described = [(name, text.partition("\n")[0], name in DEFAULT) for name, text in told.items()]
    return {"models": models, "described": described, "verdicts": _verdicts(frame)}


def _verdicts(frame: pl.DataFrame) -> list[list[str]]:
    """Per optimisation the largest gain on any model and batch beyond the placebo, and whether that is enough."""
    good = groups(frame.filter(pl.col("status") == "ok"), "device_name", "model", "batch").values()
    cases = [{row["method"]: row for row in rows.iter_rows(named=True)} for rows in good]
    cases, lines = [case for case in cases if PLACEBO in case], []
    for name in NAMES if cases else ():
        best = [max(_gains(name, measure, cases), default=(0.0, "")) for measure in MEASURES]
        worth = "yes" if max(gain for gain, _ in best) >= WORTH else "**no**"
        lines.append([name, *(f"{gain:+.1%} ({where})" if where else "" for gain, where in best), worth])
    return lines


def _gains(name: str, measure: Callable[[Row], float], cases: list[dict[str, Row]]) -> Iterator[tuple[float, str]]:
    """By which share a program is better with the optimisation, beyond the placebo; and where."""
    for case in cases:
        rows = [case[ALL], case.get(variant(name)), case[PLACEBO]]
        if None not in rows and all(map(measure, rows)):
            default, other, placebo = map(measure, rows)
            better, worse = (default, other) if name in DEFAULT else (other, default)
            where = f"{case[ALL]['model']}, batch {case[ALL]['batch']}"
            yield 1 - better / worse - abs(placebo / default - 1), where


BENCHMARK = Benchmark(
    "optimizer", "Time explainers with all optimisations, with none, and without each of them.", __name__,
    every(MODELS, (1, 8)), context,
)  # fmt: skip
