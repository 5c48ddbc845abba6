"""The report of an evaluation on texts, made from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError
from fxlrp.common.text_tables import markdown, verbatim
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.statistics import Array, estimate

_FAILURES = 50
"""So many lines at most tell what failed."""

_INTRODUCTION = """\
{count} texts. Explained and followed: the class that the model predicts, or its one output. *Correlation*: of the \
relevance of tokens with by how much {followed} falls when each is replaced by a blank (Spearman). *Area*: between \
two curves, as tokens are replaced one after the other, those with the least relevance first less those with the most \
first (Achtibat et al., ICML 2024). Brackets hold the 95 % confidence interval of the mean over texts (bootstrap, \
BCa); Σ|R| / start, of all tokens, is a median. Time is that of a text over a forward pass, the median of rounds in \
turn."""


def write_text_report(config: Config, results: pl.DataFrame, costs: Mapping[str, float], folder: Path) -> Path:
    """Write the report of what is in the results.

    Args:
        config: what was run.
        results: one row per text and method.
        costs: by method, its time over a forward pass.
        folder: where to.

    Returns:
        The page, ``report.md``.
    """
    summary, names = _summary(results), _scores(results)
    summary.write_csv(folder / "results.csv")
    followed = _told(names[0]) if names else "what is followed"
    areas = [f"area, {_told(name)}" for name in names]
    columns = ["method", "texts", "correlation", *areas, "Σ|R| / start", "time / forward"]
    parts = [
        f"# {config.title}",
        _INTRODUCTION.format(count=results["index"].n_unique(), followed=followed),
        "## All methods",
        markdown(columns, _lines(results, summary, names, costs)),
        *_against(config, results),
        *_answers(results),
        *_failures(results),
    ]
    with whole(folder / "report.md", EvaluationError) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / "report.md"


def _told(score: str) -> str:
    return score.replace("_", "-")


def _scores(results: pl.DataFrame) -> list[str]:
    """What areas are of, in their order."""
    return list(dict.fromkeys(each["key"] for areas in results["areas"].drop_nulls().to_list() for each in areas))


def _summary(results: pl.DataFrame) -> pl.DataFrame:
    """One row per method, in the order in which they first come: means, and medians over the start."""
    lines = []
    for (method,), rows in results.group_by("method", maintain_order=True):
        good = rows.filter(pl.col("status") == "ok")
        given = good.select("values", "start").drop_nulls().iter_rows()
        magnitudes = [float(np.abs(values).sum()) / abs(start) for values, start in given if start]
        line = {
            "method": method, "texts": len(good), "failed": int((rows["status"] == "failed").sum()),
            "unavailable": next(iter(rows.filter(pl.col("status") == "unavailable")["reason"]), None),
            **_interval("correlation", _correlations(good)),
        }  # fmt: skip
        for name in _scores(rows):
            line |= _interval(f"area_{name}", _areas(good, name))
        lines.append(line | {"magnitude": float(np.median(magnitudes)) if magnitudes else None})
    return pl.DataFrame(lines, infer_schema_length=None)


def _correlations(rows: pl.DataFrame) -> Array:
    return rows["correlation"].drop_nulls().to_numpy()


def _areas(rows: pl.DataFrame, name: str) -> Array:
    return np.array([each["value"] for areas in rows["areas"].to_list() for each in areas or () if each["key"] == name])


def _interval(name: str, values: Array) -> dict[str, float | None]:
    found = zip((name, f"{name}_low", f"{name}_high"), estimate(values), strict=True)
    return {key: None if np.isnan(value) else value for key, value in found}


def _lines(
    results: pl.DataFrame, summary: pl.DataFrame, names: list[str], costs: Mapping[str, float]
) -> Iterator[list[str]]:
    for line in summary.iter_rows(named=True):
        method = line["method"]
        good = results.filter((pl.col("method") == method) & (pl.col("status") == "ok"))
        if line["unavailable"] is not None:
            yield [method, f"unavailable: {verbatim(line['unavailable'])}", *[""] * (len(names) + 3)]
            continue
        yield [
            method, f"{line['texts']} ({line['failed']} failed)" if line["failed"] else str(line["texts"]),
            estimate(_correlations(good)).text(1, 2),
            *(estimate(_areas(good, name)).text(1, 3 if name == "output" else 1) for name in names),
            "–" if line["magnitude"] is None else f"{line['magnitude']:.2f}",
            f"{costs[method]:.1f}" if method in costs else "–",
        ]  # fmt: skip


def _against(config: Config, results: pl.DataFrame) -> Iterator[str]:
    """By how much the correlation of each method is above that of another one, text by text; the best first."""
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
        yield f"## Against {other}"
        yield markdown(["method", "correlation more", "texts with more"],
                       [line for _, line in sorted(lines, key=lambda line: -line[0])])  # fmt: skip


def _answers(results: pl.DataFrame) -> Iterator[str]:
    told = results.drop_nulls("answer").unique("index", maintain_order=True)
    if len(told):
        yield "## What the model says"
        yield markdown(["text", "answer"], [[row["text"], verbatim(row["answer"])] for row in told.to_dicts()])


def _failures(results: pl.DataFrame) -> Iterator[str]:
    failed: list[dict[str, Any]] = results.filter(pl.col("status") == "failed").to_dicts()
    if failed:
        yield "## What failed"
        lines = [[row["text"], row["method"], verbatim(row["reason"])] for row in failed[:_FAILURES]]
        yield markdown(["text", "method", "reason"], lines)
