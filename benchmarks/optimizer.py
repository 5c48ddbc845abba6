"""What each optimisation of the emitted program brings."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import Method, fxlrp_method
from benchmarks.pages import Row, Section, groups, ratio
from benchmarks.runs import Benchmark, every
from fxlrp.passes.optimize import DEFAULT, EMITTED, NAMES, PASSES

ALL, HEATMAP = "all", "heatmap, "
MODELS = ("resnet50", "vgg16_bn", "efficientnet_b0", "vit_b_16")
OF_HEATMAPS = [name for name in NAMES if name == "sum_channels"]
"""The optimisations that nothing but a heatmap has use for."""
WORTH = 0.03
"""An optimisation is kept if it wins this share of time or memory beyond the placebo on any model."""


def variants() -> dict[str, Method]:
    """Programs with all optimisations, with none, without one, and with one more than the default ones."""
    chosen: dict[str, bool | list[str]] = {ALL: True, "none": False}
    for name in NAMES:
        default = name in DEFAULT
        chosen[variant(name)] = [other for other in DEFAULT if other != name] if default else [*DEFAULT, name]
    heatmaps = [ALL, "none", *map(variant, OF_HEATMAPS)]
    return {name: fxlrp_method(channels_last=True, optimize=names) for name, names in chosen.items()} | {
        HEATMAP + name: fxlrp_method(channels_last=True, heatmap=True, optimize=chosen[name]) for name in heatmaps
    }


def variant(name: str) -> str:
    """The program that differs from the default one by this optimisation."""
    return f"{'without' if name in DEFAULT else 'with'} {name}"


METHODS = variants()


def sections(frame: pl.DataFrame) -> Iterator[Section]:
    """What each optimisation wins at best, and the figures of all programs by model."""
    yield _verdicts(frame)
    for (model, device), rows in groups(frame, "model", "device_name").items():
        by = {(row["method"], row["batch"]): row for row in rows.iter_rows(named=True)}
        batches = sorted(set(rows["batch"]))
        known = [ALL, PLACEBO, *METHODS]
        names = sorted(dict.fromkeys(rows["method"]), key=lambda name: known.index(name) if name in known else len(known))
        lines = [[name, *(cell for batch in batches for cell in _cells(by.get((name, batch))))] for name in names]
        columns = [f"{what}, batch {batch}" for batch in batches for what in ("time", "memory")]
        yield Section(f"{model}, {device}", columns=["optimisations", *columns], lines=lines, level=2)
    told = {name: EMITTED.get(name) or (type(PASSES[name]).__doc__ or "").strip().partition("\n")[0] for name in NAMES}
    bullets = [f"`{name}`{'' if name in DEFAULT else ' (not by default)'}: {text}" for name, text in told.items()]
    yield Section("The optimisations", bullets=bullets, level=2)


def _verdicts(frame: pl.DataFrame) -> Section:
    """Per optimisation the largest gain on any model and batch beyond the placebo."""
    lines = []
    cases = [{row["method"]: row for row in rows.filter(pl.col("status") == "ok").iter_rows(named=True)}
             for rows in groups(frame, "device_name", "model", "batch").values()]  # fmt: skip
    cases = [case for case in cases if PLACEBO in case]
    for name in NAMES if cases else ():
        best = {what: max(_gains(name, measure, cases), default=(float("-inf"), "")) for what, measure in MEASURES.items()}
        worth = any(gain >= WORTH for gain, _ in best.values())
        cells = [f"{gain:+.1%} ({where})" if where else "" for gain, where in best.values()]
        lines.append([name, *cells, "yes" if worth else "**no**"])
    text = f"Largest gain on any model and batch, less the distance of the placebo from 1; worth it from {WORTH:.0%} on."
    return Section("What each wins beyond the placebo", text, columns=["optimisation", *MEASURES, "worth it"],
                   lines=lines, notes="" if lines else "No placebo was measured beside these rows.", level=2)  # fmt: skip


MEASURES = {
    "time": lambda row: row["ratio"],
    "held memory": lambda row: row["held_mb"],
    "peak memory": lambda row: row["held_mb"] and row["held_mb"] + row["call_mb"],
}
"""Of a row; the last is what is held between calls and what one call takes beyond it."""


def _gains(name: str, measure, cases: list[dict[str, Row]]) -> Iterator[tuple[float, str]]:
    """By which share a program is better with the optimisation, beyond the placebo; and where."""
    for case in cases:
        for kind in ("", HEATMAP):
            rows = [case.get(kind + ALL), case.get(kind + variant(name))]
            if None in rows or not all(map(measure, [*rows, case[ALL], case[PLACEBO]])):
                continue
            with_it, without = map(measure, rows if name in DEFAULT else reversed(rows))
            spread = abs(measure(case[PLACEBO]) / measure(case[ALL]) - 1)
            yield 1 - with_it / without - spread, f"{kind}{case[ALL]['model']}, batch {case[ALL]['batch']}"


def _cells(row: Row | None) -> list[str]:
    if row is None or row["status"] != "ok":
        return [f"fails at {row['stage']}: {row['reason'][:80]}" if row else "", ""]
    time = f"1 ({row['seconds']:.3g} s)" if row["method"] == ALL else ratio(row, 3)
    return [time, "" if row["call_mb"] is None else f"{row['call_mb']:.0f} / {row['held_mb']:.0f}"]


BENCHMARK = Benchmark(
    "optimizer", "Time explainers with all optimisations, with none, and without each of them.", "benchmarks.optimizer",
    every(MODELS, (1, 8)), sections,
)  # fmt: skip
