"""The tables of a report: columns and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from fxlrp.common.text_tables import verbatim
from fxlrp.evaluation import paper, result_frames
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import Cost
from fxlrp.evaluation.result_frames import differences, of_method
from fxlrp.evaluation.statistics import Array, Estimate, estimate

TIE_NAMES = {"strict": "strict order", "plateau": "plateaus"}

Line = list[str]
Method = dict[str, Any]
"""A line of the summary."""


_PROPERTIES = {
    "pointing": "in the cell, %", "correlation in a grid": "correlation in a grid",
    "second class": "with the second class", "random class": "with a random class", "stability": "under noise",
    "sparsity": "Gini index", "arriving": "Σ|R| / start",
}  # fmt: skip
_SHARES = ("pointing",)
"""Properties that are told in per cent, with their interval."""


class Table(NamedTuple):
    """Text in columns.

    Attributes:
        columns: their heads, which need not differ.
        lines: as many cells each.
    """

    columns: Sequence[str]
    lines: Sequence[Line]


def title(method: str, levels: int) -> str:
    """What a table calls a method with a number of levels."""
    return f"{method}, {levels} levels" if levels else method


class ReportTables:
    """The tables of a report.

    Args:
        config: what was run.
        results: as :func:`fxlrp.evaluation.result_frames.frame_of` gives them.
    """

    def __init__(self, config: Config, results: pl.DataFrame) -> None:
        self.results = results
        self.summary = result_frames.summary(results, config.metrics)
        self._config = config
        self._ties = config.metrics.ties
        self._by_method: dict[tuple[str, int], Method] = {
            (line["method"], line["levels"]): line for line in self.summary.iter_rows(named=True)
        }
        self._by_role = {entry.paper: entry.spec.name for entry in config.methods if entry.paper is not None}

    def all_methods(self) -> Table:
        """Every method under every tie rule."""
        columns = ["method", "images"]
        for tie in self._ties:
            columns += [f"ID, {TIE_NAMES[tie]}", "insertion", "deletion", f"ID ≤ {self._config.metrics.failure:g}"]
        lines = []
        for method in self._by_method.values():
            images = f"{method['images']} ({method['failed']} failed)" if method["failed"] else str(method["images"])
            cells = [cell for tie in self._ties for cell in (
                _interval(method, tie), *_percents(method, f"insertion_{tie}", f"deletion_{tie}"),
                _percent(method[f"failure_share_{tie}"], " %", 0),
            )]  # fmt: skip
            lines.append(_line(method, [images, *cells, *_percents(method, "tied")]))
        return Table([*columns, "tied pixels"], lines)

    def paper_tables(self) -> Iterator[tuple[str, Table]]:
        """The paper's tables that have methods here, with its figures beside ours: headline and table."""
        columns = [f"{what}, {TIE_NAMES[tie]}" for tie in self._ties for what in ("Ins", "Del", "ID")]
        for headline, rows in paper.tables(self._config.data.kind).items():
            lines = []
            for row in rows:
                for method in self._levels(self._by_role.get(row.role), row.levels):
                    cells = [cell for tie in self._ties for cell in (
                        *_percents(method, f"insertion_{tie}", f"deletion_{tie}"), _interval(method, tie),
                    )]  # fmt: skip
                    reported = ["–" if value is None else f"{value:.1f}" for value in row[1:4]]
                    lines.append(_line(method, cells) + reported)
            if lines:
                yield headline, Table(["method", *columns, "paper: Ins", "Del", "ID"], lines)

    def orderings(self) -> Table:
        """What of the paper's ordering holds here, by tie rule and with and without quantised maps."""
        lines = []
        for better, worse, claim in paper.CLAIMS:
            if better in self._by_role and worse in self._by_role:
                for method in sorted(self._levels(self._by_role[better]), key=lambda line: line["levels"]):
                    for levels in (method["levels"], 0):
                        if (self._by_role[worse], levels) in self._by_method:
                            lines.append(self._claim(claim, method, (self._by_role[worse], levels)))
                            break
        for name in (self._by_role.get(role) for role in paper.QUANTIZED):
            for method in sorted(self._levels(name), key=lambda line: line["levels"]):
                if method["levels"] and (name, 0) in self._by_method:
                    lines.append(self._claim(f"Heat Quantization raises {name}", method, (str(name), 0)))
        columns = [f"difference of ID, {TIE_NAMES[tie]}" for tie in self._ties]
        return Table(["claim", "maps", *columns], lines)

    def against(self, other: str | None) -> Table:
        """By how much the ID of each method is above that of another one, image by image; the best first."""
        tie = self._ties[0]
        lines = []
        for method, levels in self._by_method if (other, 0) in self._by_method else ():
            gains = self._differences((method, levels), (str(other), 0), tie)
            if (method, levels) != (other, 0) and len(gains):
                more = f"{100 * (gains > 0).mean():.0f} %"
                lines.append((gains.mean(), [title(method, levels), estimate(gains).text(), more]))
        lines.sort(key=lambda line: -line[0])
        return Table(["method", f"ID more, {TIE_NAMES[tie]}", "images with more"], [line for _, line in lines])

    def sweeps(self, costs: Mapping[str, Cost]) -> Iterator[tuple[str, Table]]:
        """By sweep, its methods, the best first, with what they cost: its name and table."""
        tie = self._ties[0]
        groups = {entry.spec.name: entry.group for entry in self._config.methods if entry.group is not None}
        ranked = self.summary.drop_nulls(f"id_{tie}").sort(f"id_{tie}", descending=True, maintain_order=True)
        arrived = dict(_finite(result_frames.arrivals(self.results).filter(checkpoint="input"))
                       .group_by("method").agg(pl.col("share").mean()).iter_rows())  # fmt: skip
        medians = {name: cost.median for name, cost in costs.items()}
        for group in dict.fromkeys(groups.values()):
            lines = [
                _line(method, [_interval(method, tie), _number(arrived.get(name), 3), _number(medians.get(name), 2)])
                for method in ranked.iter_rows(named=True)
                if groups.get(name := method["method"]) == group
            ]
            if lines:
                yield str(group), Table(["setting", f"ID, {TIE_NAMES[tie]}", "Σ R / start", "time / forward"], lines)

    def conservation(self) -> Table:
        """How much of what entered arrives at the checkpoints, by methods that propagate relevance."""
        share = pl.col("share")
        kept = (
            _finite(result_frames.arrivals(self.results))
            .group_by("method", "checkpoint", maintain_order=True)
            .agg(mean=share.mean(), least=share.min(), most=share.max(), error=(share - 1).abs().max())
        )
        lines = [
            [method, checkpoint, *(f"{value:.4f}" if abs(value) < 1000 else f"{value:.1e}" for value in shares),
             f"{error:.1e}"]
            for method, checkpoint, *shares, error in kept.iter_rows()
        ]  # fmt: skip
        return Table(["method", "at", "Σ R / start: mean", "least", "most", "largest error"], lines)

    def properties(self, content: Mapping[str, Any]) -> Table:
        """What maps are like: one line per method, one column per property, each the mean over images or cells."""
        by_method: dict[str, dict[str, list[float | None]]] = {}
        for part in ("by_grid", "by_image"):
            for name, found in content.get(part, {}).items():
                by_method.setdefault(name, {}).update(found)
        shown = [name for name in _PROPERTIES if any(name in found for found in by_method.values())]
        lines = [[name, *(_mean(found.get(each, []), each in _SHARES) for each in shown)]
                 for name, found in by_method.items()]  # fmt: skip
        return Table(["method", *(_PROPERTIES[name] for name in shown)], lines)

    def failures(self) -> Table:
        """The images that a method gave no score for, with the reason."""
        failed = self.results.filter(status="failed").select("index", "method", "levels", "reason")
        order = {key: i for i, key in enumerate(self._by_method)}
        lines = [
            [str(index), title(method, levels), verbatim(reason)]
            for index, method, levels, reason in sorted(failed.iter_rows(), key=lambda line: order[line[1], line[2]])
        ]
        return Table(["image", "method", "reason"], lines)

    def _levels(self, name: str | None, levels: int | None = None) -> list[Method]:
        """The lines of a method, or the one of a number of levels."""
        return [m for key, m in self._by_method.items() if key[0] == name and levels in (None, key[1])]

    def _claim(self, claim: str, first: Method, second: tuple[str, int]) -> Line:
        cells = [claim, f"{first['levels']} levels" if first["levels"] else "as they are"]
        for tie in self._ties:
            gain = estimate(self._differences((first["method"], first["levels"]), second, tie))
            verdict = "holds" if gain.low > 0 else "the reverse" if gain.high < 0 else "undecided"
            cells.append("–" if np.isnan(gain.mean) else f"{gain.text()}: **{verdict}**")
        return cells

    def _differences(self, first: tuple[str, int], second: tuple[str, int], tie: str) -> Array:
        return differences(of_method(self.results, *first), of_method(self.results, *second), tie)


def _line(method: Method, cells: Line) -> Line:
    """A method's line; of one that cannot run the reason, and empty cells."""
    if method["unavailable"] is not None:
        cells = [f"cannot run: {verbatim(method['unavailable'])}", *[""] * (len(cells) - 1)]
    return [title(method["method"], method["levels"]), *cells]


def _interval(method: Method, tie: str) -> str:
    mean, low, high = (method[f"{name}_{tie}"] for name in ("id", "id_low", "id_high"))
    return Estimate(*(np.nan if value is None else value for value in (mean, low, high))).text()


def _percents(method: Method, *columns: str) -> Line:
    return [_percent(method[column]) for column in columns]


def _percent(value: float | None, unit: str = "", digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}{unit}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _mean(values: Sequence[float | None], interval: bool) -> str:
    there = np.array([value for value in values if value is not None])
    if interval:
        return estimate(there).text()
    return f"{there.mean():.2f}" if len(there) else "–"


def _finite(shares: pl.DataFrame) -> pl.DataFrame:
    return shares.filter(pl.col("share").is_finite())
