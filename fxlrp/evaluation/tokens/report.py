"""The report of an evaluation on passages, made from its results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError
from fxlrp.common.text_tables import markdown, verbatim
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import Cost, costs_of
from fxlrp.evaluation.relevance_sums import INPUT
from fxlrp.evaluation.statistics import Array, estimate
from fxlrp.evaluation.tokens.heads import DRAWS

_FAILURES = 50
"""So many lines at most tell what failed."""

_BOUND = 0.9
"""Below the bound of magnitudes is this share of the passages."""

_INTRODUCTION = """\
{count} {what}. Explained and followed: the class that the model predicts, or its one output. *Correlation*: of the \
relevance of {places} with by how much {followed} falls when each is replaced by a blank, of ranks (Spearman), and \
*linear* (Pearson). *Area*: between two curves, as {places} are replaced one after the other, those with the least \
relevance first less those with the most first (Achtibat et al., ICML 2024). Brackets hold the 95 % confidence \
interval of the mean over {what} (bootstrap, BCa); Σ|R| / start, of all {places}, is a median. Time is that of a {one} \
over a forward pass, the median of turns that methods take one after the other, of all threads; \
`results.csv` has the least and the most, and those of a placebo, a forward pass over another."""

_BOUNDS = """\
*Bound*: Σ|R| over all numbers of the input, over that at the input of a module; nine of ten {what} are below it."""

_TRUTH = """\
Of the {places} that the right class is known to rest on: *first*, how often that with the largest magnitude is one of \
them, and *by sign*, that with the most relevance; *all first*, how often they have the largest magnitudes of all; \
*share*, what part of all magnitudes lies on them; *precision*, average precision in the order of magnitudes."""

_HEADS = """\
{count} of the {all} heads were ablated at once, replaced by zeros: by how much {followed} changes, up or down, \
without those with the most relevance by magnitude, with the least, and at random (mean of {draws} draws, the same \
for all methods). *Order*: rank correlation of the relevance of each head with the fall when it alone is ablated."""

HEADS = ("most", "random", "least", "order")
"""What is measured of heads, as it is called in a report."""

TRUTH = {"first": "first", "first_signed": "by sign", "all_first": "all first", "share": "share",
         "precision": "precision"}  # fmt: skip
"""What is measured against the truth, and what it is called in a report."""


def write_passage_report(config: Config, results: pl.DataFrame, costs: Mapping[str, Any], folder: Path) -> Path:
    """Write the report of what is in the results.

    Args:
        config: what was run.
        results: one row per passage and method.
        costs: by method the content of its :class:`~fxlrp.evaluation.costs.Cost`; of several subjects by subject.
        folder: where to.

    Returns:
        The page, ``report.md``.
    """
    results = results.with_columns(pl.col("subject").fill_null(""))
    parts, summaries = [f"# {config.title}", *_introduction(config, results)], []
    for subject in config.subjects:
        own = results.filter(pl.col("subject") == subject.name)
        cost = costs_of(costs.get(subject.name, {}) if subject.name else costs)
        summary = _summary(own, cost)
        summaries.append(summary if not subject.name else summary.select(pl.lit(subject.name).alias("subject"), "*"))
        parts += _sections(config, subject.name, own, summary, cost)
    parts += _failures(results)
    pl.concat(summaries, how="diagonal_relaxed").write_csv(folder / "results.csv")
    with whole(folder / "report.md", EvaluationError) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / "report.md"


def _introduction(config: Config, results: pl.DataFrame) -> Iterator[str]:
    names = _scores(results)
    words = {
        "count": results["index"].n_unique(), "what": config.what, "one": config.what.removesuffix("s"),
        "places": "tokens" if config.what == "texts" else "places",
        "followed": _told(names[0]) if names else "what is followed",
    }  # fmt: skip
    yield _INTRODUCTION.format_map(words)
    if any(results["magnitudes"].drop_nulls().list.len()):
        yield _BOUNDS.format_map(words)
    if _has_truth(results):
        yield _TRUTH.format_map(words)


def _sections(
    config: Config, subject: str, results: pl.DataFrame, summary: pl.DataFrame, costs: Mapping[str, Cost]
) -> Iterator[str]:
    """What is told of a subject; of several each has its heading, and others below it."""
    below = "###" if subject else "##"
    yield f"## {subject}" if subject else "## All methods"
    labelled = results.drop_nulls(["label", "target"]).unique("index")
    if len(labelled):
        right = int((labelled["label"] == labelled["target"]).sum())
        yield f"{len(labelled)} {config.what}, of which the model gets {100 * right / len(labelled):.1f} % right."
    names = _scores(results)
    bounds = [column for column in summary.columns if column.startswith("bound_")]
    columns = [
        "method", config.what, "correlation", "linear", *(f"area, {_told(name)}" for name in names), "Σ|R| / start",
        *(f"bound, {column.removeprefix('bound_')}" for column in bounds), "time / forward",
    ]  # fmt: skip
    yield markdown(columns, _lines(results, summary, names, bounds, costs))
    if _has_truth(results):
        yield f"{below} Known truth"
        yield markdown(["method", *TRUTH.values()], _map_lines(results, "truth", TRUTH))
    if _names(results, "heads"):
        yield f"{below} Heads"
        total = int(_entries(results, "heads", "heads")[0])
        yield _HEADS.format(count=config.metrics.heads, all=total, followed=_told(names[0]), draws=DRAWS)
        yield markdown(["method", *HEADS], _map_lines(results, "heads", HEADS))
    yield from _against(config, results, below)
    if config.what == "texts":
        yield from _answers(results, below)


def _told(score: str) -> str:
    return score.replace("_", "-")


def _scores(results: pl.DataFrame) -> list[str]:
    """What areas are of, in their order."""
    return _names(results, "areas")


def _names(results: pl.DataFrame, column: str) -> list[str]:
    """The keys in a column of maps, in their order."""
    return list(dict.fromkeys(each["key"] for entries in results[column].drop_nulls().to_list() for each in entries))


def _has_truth(results: pl.DataFrame) -> bool:
    return bool(_names(results, "truth"))


def _summary(results: pl.DataFrame, costs: Mapping[str, Cost]) -> pl.DataFrame:
    """One row per method, in the order in which they first come: means, medians over the start, bounds, and costs."""
    lines = []
    for (method,), rows in results.group_by("method", maintain_order=True):
        good = rows.filter(pl.col("status") == "ok")
        given = good.select("values", "start").drop_nulls().iter_rows()
        magnitudes = [float(np.abs(values).sum()) / abs(start) for values, start in given if start]
        line = {
            "method": method, "texts": len(good), "failed": int((rows["status"] == "failed").sum()),
            "unavailable": next(iter(rows.filter(pl.col("status") == "unavailable")["reason"]), None),
            **_interval("correlation", _numbers(good, "correlation")), **_interval("linear", _numbers(good, "linear")),
        }  # fmt: skip
        for name in _scores(rows):
            line |= _interval(f"area_{name}", _entries(good, "areas", name))
        for name in TRUTH if _has_truth(results) else ():
            line |= _interval(f"truth_{name}", _entries(good, "truth", name))
        for name in HEADS if _names(results, "heads") else ():
            line |= _interval(f"heads_{name}", _entries(good, "heads", name))
        for name in _names(results, "magnitudes"):
            if name != INPUT:
                line[f"bound_{name}"] = _bound(good, name)
        line["magnitude"] = float(np.median(magnitudes)) if magnitudes else None
        if method in costs:
            line |= _range("time", costs[method].turns) | _range("placebo", costs[method].placebo)
        lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def _range(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.median(values)), f"{name}_least": min(values), f"{name}_most": max(values)} if values else {}


def _numbers(rows: pl.DataFrame, column: str) -> Array:
    return rows[column].drop_nulls().to_numpy()


def _entries(rows: pl.DataFrame, column: str, name: str) -> Array:
    """What the maps of a column have under a name."""
    return np.array([each["value"] for entries in rows[column].to_list() for each in entries or ()
                     if each["key"] == name])  # fmt: skip


def _bound(rows: pl.DataFrame, module: str) -> float | None:
    """Below which Σ|R| at the input over that at the input of a module is; ``None`` where nothing is distributed."""
    arrived, entered = _entries(rows, "magnitudes", INPUT), _entries(rows, "magnitudes", module)
    return float(np.quantile(arrived / entered, _BOUND)) if len(arrived) else None


def _interval(name: str, values: Array) -> dict[str, float | None]:
    found = zip((name, f"{name}_low", f"{name}_high"), estimate(values), strict=True)
    return {key: None if np.isnan(value) else value for key, value in found}


def _lines(
    results: pl.DataFrame, summary: pl.DataFrame, names: list[str], bounds: list[str], costs: Mapping[str, Cost]
) -> Iterator[list[str]]:
    for line in summary.iter_rows(named=True):
        method = line["method"]
        good = _good(results, method)
        if line["unavailable"] is not None:
            yield [method, f"unavailable: {verbatim(line['unavailable'])}", *[""] * (len(names) + len(bounds) + 4)]
            continue
        yield [
            method, f"{line['texts']} ({line['failed']} failed)" if line["failed"] else str(line["texts"]),
            *(estimate(_numbers(good, name)).text(1, 2) for name in ("correlation", "linear")),
            *(estimate(_entries(good, "areas", name)).text(1, 3 if name == "output" else 1) for name in names),
            "–" if line["magnitude"] is None else f"{line['magnitude']:.2f}",
            *("–" if line[bound] is None else f"{line[bound]:.1f}" for bound in bounds),
            f"{costs[method].median:.1f}" if method in costs else "–",
        ]  # fmt: skip


def _map_lines(results: pl.DataFrame, column: str, names: Iterable[str]) -> Iterator[list[str]]:
    """What the maps of a column have under these names, by method; methods without any are left out."""
    for method in results["method"].unique(maintain_order=True):
        good = _good(results, method)
        if _names(good, column):
            yield [method, *(estimate(_entries(good, column, name)).text(1, 2) for name in names)]


def _good(results: pl.DataFrame, method: str) -> pl.DataFrame:
    return results.filter((pl.col("method") == method) & (pl.col("status") == "ok"))


def _against(config: Config, results: pl.DataFrame, below: str) -> Iterator[str]:
    """By how much the correlation of each method is above that of another one, passage by passage; the best first."""
    other = config.run.against
    if other is None:
        return
    by_text = {method: dict(rows.select("index", "correlation").drop_nulls().iter_rows())
               for (method,), rows in results.group_by("method", maintain_order=True)}  # fmt: skip
    lines = []
    for method, found in by_text.items():
        gains = np.array([value - by_text[other][index] for index, value in found.items() if index in by_text[other]])
        if method != other and len(gains):
            lines.append((gains.mean(), [method, estimate(gains).text(1, 2), f"{100 * (gains > 0).mean():.0f} %"]))
    if lines:
        yield f"{below} Against {other}"
        yield markdown(["method", "correlation more", f"{config.what} with more"],
                       [line for _, line in sorted(lines, key=lambda line: -line[0])])  # fmt: skip


def _answers(results: pl.DataFrame, below: str) -> Iterator[str]:
    told = results.drop_nulls("answer").unique("index", maintain_order=True)
    if len(told):
        yield f"{below} What the model says"
        yield markdown(["text", "answer"], [[row["text"], verbatim(row["answer"])] for row in told.to_dicts()])


def _failures(results: pl.DataFrame) -> Iterator[str]:
    failed: list[dict[str, Any]] = results.filter(pl.col("status") == "failed").to_dicts()
    if failed:
        yield "## What failed"
        lines = [[row["text"], row["method"], verbatim(row["reason"])] for row in failed[:_FAILURES]]
        yield markdown(["text", "method", "reason"], lines)
