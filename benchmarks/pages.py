"""Rows in CSV files, and what is made of them: pages of Markdown, which ``texts/`` holds with gaps, and pictures."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.harness import PLACEBO
from benchmarks.workers import HERE, Row

# The colours of Okabe and Ito, which differ for every kind of colour vision, and markers.
STYLES = {
    "fxlrp eager": ("#56B4E9", "o"), "fxlrp channels-last": ("#0072B2", "s"), "fxlrp inductor": ("#009E73", "D"),
    "fxlrp cudagraphs": ("#009E73", "P"), "captum LRP": ("#F0E442", "v"), "autolrp": ("#E69F00", "^"),
    "autolrp composite": ("#D55E00", "<"), "zennit EpsilonPlus": ("#CC79A7", ">"), "lxt": ("#999999", "X"),
}  # fmt: skip
Panels = Mapping[tuple[str, str], pl.DataFrame]
"""By device and title the rows, with their ``value`` on the axis: a number, drawn as lines, or a name."""


class CsvTable:
    """Rows by key, in memory and in a CSV file that is complete at any moment.

    Cells are text, or ``None``, an empty one, where there is no value. The file may not exist yet, and may lack columns
    of the key, which are empty then.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, tuple(key)
        read = pl.read_csv(path, infer_schema=False).rows(named=True) if path.exists() else []
        self.rows: dict[tuple[str, ...], dict[str, str | None]] = {self.key_of(row): row for row in read}

    def key_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(_text(row.get(column)) or "" for column in self.key)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, or replace those with the same key, and write the file."""
        self.rows |= {self.key_of(row): {name: _text(value) for name, value in row.items()} for row in rows}
        partial = self.path.with_suffix(".partial")
        self._texts().write_csv(partial)
        partial.replace(self.path)

    def frame(self, types: dict[str, Any]) -> pl.DataFrame:
        """The rows with at least these columns, others are text; a missing text is "", a missing number ``None``."""
        return self._texts([*self.key, *types]).cast(types).with_columns(pl.col(pl.String).fill_null(""))

    def _texts(self, more: Iterable[str] = ()) -> pl.DataFrame:
        schema = dict.fromkeys([*(name for row in self.rows.values() for name in row), *more], pl.String)
        return pl.DataFrame([*self.rows.values()], schema)


def _text(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else None if value in (None, "") else str(value)


def page(name: str, **context: Any) -> str:
    """The text of this name, which extends ``page.md.jinja``; the context is what it may name."""
    environment = Environment(loader=FileSystemLoader(HERE / "texts"), trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)  # fmt: skip
    environment.globals |= {"table": table, "grid": grid}
    # An error may hold angle brackets, stars and underscores.
    environment.filters["verbatim"] = lambda text: "`" + text.replace("`", "'") + "`" if text else ""
    text = environment.get_template(f"{name}.md.jinja").render(name=name, **context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def table(columns: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    cells = [[str(cell).strip().replace("|", "\\|") for cell in line] for line in (columns, *lines)]
    head, *body = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def grid(rows: Iterable[Row], line: str, column: str, cell: Callable[[Row], str], head: str = "") -> str:
    """A table with one line per value of ``line`` and one column per value of ``column``, in order of appearance."""
    cells = {(row[line], row[column]): cell(row) if row["status"] == "ok" else "fails" for row in rows}
    lines, columns = (list(dict.fromkeys(key[index] for key in cells)) for index in (0, 1))
    filled = [[name, *(cells.get((name, other), "") for other in columns)] for name in lines]
    return table([head or line, *columns], filled)


def groups(frame: pl.DataFrame, *columns: str) -> dict[Any, pl.DataFrame]:
    """The rows by the values of one column, or of several, in order of appearance."""
    parts = frame.partition_by(columns, as_dict=True, maintain_order=True)
    return {key if len(columns) > 1 else key[0]: part for key, part in parts.items()}


def in_order(frame: pl.DataFrame, column: str, values: Iterable[str]) -> pl.DataFrame:
    """Sorted by a column as ``values`` has them; others come last."""
    return frame.sort(pl.col(column).cast(pl.Enum([*values]), strict=False), nulls_last=True, maintain_order=True)


def ratio(row: Row, digits: int = 2) -> str:
    """The median, and in brackets the least and the largest."""
    return f"{row['ratio']:.{digits}f} ({row['ratio_min']:.{digits}f}–{row['ratio_max']:.{digits}f})"


def timing_context(frame: pl.DataFrame, facts: Mapping[str, str]) -> dict[str, Any]:
    """What pages of all timing benchmarks may name.

    ``measured``: on which machines, when and with what; ``versions``; ``placebo``: its rows; ``failures``: those that
    failed alike together; ``cases``: a table with one line per case and method, with ``facts`` as further columns, each
    with the format of its figures.
    """
    good, failed = frame.filter(pl.col("status") == "ok"), frame.filter(pl.col("status") != "ok")
    whole = good.filter(pl.col("part") == "")
    return {
        "measured": groups(whole, "device", "device_name", "threads", "torch", "dtype", "rounds").items(),
        "versions": sorted(set(frame["version"]) - {""}),
        "placebo": whole.filter(pl.col("method") == PLACEBO),
        "failures": [(key, groups(rows, "compared", "model", "variant"))
                     for key, rows in groups(failed, "method", "stage", "reason").items()],
        "cases": _cases(whole.filter(pl.col("ratio_min").is_not_null()), good.filter(pl.col("part") != ""), facts),
    }  # fmt: skip


def _cases(whole: pl.DataFrame, parts: pl.DataFrame, facts: Mapping[str, str]) -> str:
    index, part = ["device_name", "compared", "model", "variant", "batch", "method"], pl.col("ratio")
    spread = parts.group_by(index).agg(least=part.min(), most=part.max(), below=(part < 0.98).sum(), parts=pl.len())
    rows = whole.join(spread, on=index, how="left", maintain_order="left").rows(named=True)
    cells: dict[str, list[object]] = {name: [row[name] for row in rows] for name in index} | {
        "time": [f"{row['seconds']:.3g} s" for row in rows],
        "ratio": [ratio(row, 3) for row in rows],
        "processor time": [f"{row['processor_ratio'] or 0:.2f}" for row in rows],
        "by part": ["{least:.2f}–{most:.2f}, {below} of {parts} below 0.98".format(**row) if row["parts"] else ""
                    for row in rows],
    }  # fmt: skip
    for name, form in facts.items():
        cells[name.replace("_", " ")] = [f"{float(row[name]):{form}}" if row.get(name) else "" for row in rows]
    if len(set(cells["device_name"])) < 2:
        del cells["device_name"]
    used = {name: column for name, column in cells.items() if any(column)}
    return table([*used], zip(*used.values(), strict=True))


def draw(panels: Panels, path: Path) -> bool:
    """Draw the panels, with the least and largest ratio; return whether there was anything to draw."""
    from matplotlib.figure import Figure

    known = pl.col("status") == "ok", pl.col("method").is_in(list(STYLES))
    panels = {key: rows for key, frame in panels.items() if len(rows := frame.filter(*known))}
    if not panels:
        return False
    names = isinstance(next(iter(panels.values()))["value"][0], str)
    columns = 1 if names else 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + (12 if names else 4) * columns, 1 + 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for ax, ((device, title), rows) in zip(axes, panels.items(), strict=False):
        values = list(rows["value"].unique(maintain_order=True))
        methods = [name for name in STYLES if name in rows["method"]]
        for index, name in enumerate(methods):
            own, (colour, marker) = rows.filter(pl.col("method") == name), STYLES[name]
            # What stands at a name stands side by side.
            shift = (index - (len(methods) - 1) / 2) * 0.8 / len(methods)
            at = [values.index(value) + shift for value in own["value"]] if names else own["value"]
            ax.errorbar(at, own["ratio"], yerr=[own["ratio"] - own["ratio_min"], own["ratio_max"] - own["ratio"]],
                        label=name, color=colour, marker=marker, linestyle="" if names else "-")  # fmt: skip
        ax.axhline(1, color="black", linewidth=1, linestyle="--", label="autograd")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")  # powers of two as numbers
        if not names:
            ax.set_xscale("log", base=2)
        ax.set_xticks(range(len(values)) if names else values, list(map(str, values)))
        ax.minorticks_off()
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(f"time / autograd, {device}")
    handles = {name: handle for ax in figure.axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    return True
