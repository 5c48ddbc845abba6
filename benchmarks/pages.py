"""Pages of Markdown: the text of ``texts/``, and sections that are made of rows, by one template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader

HERE = Path(__file__).parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading, a text, bullets, a table, and notes under it; each may be missing."""

    title: str = ""
    text: str = ""
    bullets: Sequence[str] = ()
    columns: Sequence[object] = ()
    lines: Sequence[Sequence[object]] = ()
    notes: str = ""
    level: int = 3


def page(name: str, sections: Iterable[Section]) -> str:
    """The page of a benchmark."""
    environment = Environment(loader=FileSystemLoader(HERE), trim_blocks=True, keep_trailing_newline=True)
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    text = (HERE / "texts" / f"{name}.md").read_text().strip()
    return environment.get_template("page.md.jinja").render(text=text, sections=list(sections))


def verbatim(text: str) -> str:
    """Text as it is: an error may hold angle brackets, stars and underscores."""
    return "`" + text.replace("`", "'") + "`" if text else ""


def groups(frame: pl.DataFrame, *columns: str) -> dict[Any, pl.DataFrame]:
    """The rows by the values of one column, or of several, in order of appearance."""
    parts = frame.partition_by(columns, as_dict=True, maintain_order=True)
    return {key if len(columns) > 1 else key[0]: part for key, part in parts.items()}


def in_order(frame: pl.DataFrame, column: str, values: Iterable[object]) -> pl.DataFrame:
    """Sorted by a column as ``values`` has them; others come last."""
    ranks = {value: rank for rank, value in enumerate(values)}
    return frame.sort(pl.Series([ranks.get(value, len(ranks)) for value in frame[column]]), maintain_order=True)


def grid(rows: Iterable[Row], line: str, column: str, cell: Callable[[Row], str], head: str = "") -> dict[str, Any]:
    """A table: one line per value of ``line``, one column per value of ``column``, in order of appearance."""
    cells = {(row[line], row[column]): cell(row) if row["status"] == "ok" else "fails" for row in rows}
    lines, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    return {"columns": [head or line, *columns],
            "lines": [[name, *(cells.get((name, other), "") for other in columns)] for name in lines]}  # fmt: skip


def ratio(row: Row, digits: int = 2) -> str:
    """The median, and in brackets the least and the largest."""
    return f"{row['ratio']:.{digits}f} ({row['ratio_min']:.{digits}f}–{row['ratio_max']:.{digits}f})"


def made(frame: pl.DataFrame) -> Section:
    """On which machine, when and with what the rows of a timing benchmark were made, and what the placebo says."""
    bullets = []
    measured = frame.filter(pl.col("status") == "ok", pl.col("part") == "")
    for (device, name, threads, torch, dtype, rounds), rows in groups(
        measured, "device", "device_name", "threads", "torch", "dtype", "rounds"
    ).items():
        batches, sizes = (", ".join(map(str, rows[column].unique().sort())) for column in ("batch", "size"))
        busy = rows["busy"].max()
        bullets.append(
            f"{device.upper()}: {name}, {threads} thread{'s' if threads != '1' else ''}; torch {torch}, {dtype}, "
            f"{rounds} rounds; batch {batches}; height and width {sizes}; {len(rows)} rows from {rows['date'].min()} to "
            f"{rows['date'].max()}" + ("" if busy is None else f"; before, other work kept {busy:.2f} cores busy at most")
        )
    bullets += [f"Versions: {'; '.join(used)}"] if (used := sorted(set(frame["version"]) - {""})) else []
    bullets += ["No GPU was at hand; with one, `--device cuda` makes the same tables"] if "cuda" not in frame["device"] else []
    placebo = measured.filter(pl.col("method") == "placebo")
    bullets.append(
        f"Placebo, the yardstick in a second process: {placebo['ratio'].min():.3f} to {placebo['ratio'].max():.3f} in "
        f"{len(placebo)} cases, single rounds {placebo['ratio_min'].min():.3f} to {placebo['ratio_max'].max():.3f}"
        if len(placebo) else "Placebo, the yardstick in a second process: not measured"
    )  # fmt: skip
    return Section(text="Measured:", bullets=bullets)


def failures(frame: pl.DataFrame) -> Section:
    """What failed, those that failed alike in one line."""
    bullets = []
    for (method, stage, reason), rows in groups(
        frame.filter(pl.col("status") != "ok"), "method", "stage", "reason"
    ).items():
        where = ", ".join(" ".join(filter(None, (model, variant))) + f" (batch {', '.join(map(str, some['batch']))})"
                          for (model, variant), some in groups(rows, "model", "variant").items())  # fmt: skip
        bullets.append(f"**{method}**, {where}, at {stage}: {verbatim(reason)}")
    return Section("Failures", bullets=bullets, text="" if bullets else "None.", level=2)
