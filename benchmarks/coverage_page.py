"""The page of the coverage sweep."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from benchmarks.csv_table import CsvTable
from benchmarks.pages import Row, Section, grid, groups, in_order, verbatim
from benchmarks.peers import PEERS
from benchmarks.zoo import ZOOS

LIMITS = {"float32": 1e-4, "float64": 1e-10}
JOINS = ("joins_identity", "joins_projection", "joins_merge")


def sections(models: CsvTable, peers: CsvTable, command: str) -> Iterator[Section]:
    """The summary, what fails, a table per zoo, and the peers."""
    order = {(zoo, name): rank for rank, (zoo, name) in enumerate((z, n) for z in ZOOS for n in ZOOS[z].members())}
    frame = models.frame(numbers=("node_error", "total_error", "compile_s"), texts=(
        "group", "status", "stage", "reason", "capture", *JOINS, "worst_node", "absorbed", "outputs", "finite", "made", "date",
    ))  # fmt: skip
    others = peers.frame(numbers=("ratio",), texts=(
        "status", "stage", "reason", "within_1_percent", "finite", "start", "how", "made", "date",
    )).with_columns(zoo=pl.lit("torchvision"))  # fmt: skip
    others = in_order(others, "peer", PEERS)
    frame, others = (_ranked(each, order) for each in (frame.sort("dtype", maintain_order=True), others))
    yield _summary(frame)
    yield _made(frame, others, command)
    failed = [f"**{row['zoo']}:{row['name']}** ({row['dtype']}), " + (
                  f"at {row['stage']}: {verbatim(row['reason'])}" if row["status"] != "ok" else
                  f"does not conserve: total {row['total_error']:.1e}, worst node `{row['worst_node']}` {row['node_error']:.1e}")
              for row in frame.iter_rows(named=True) if not _conserves(row)]  # fmt: skip
    yield Section("Failures", text="" if failed else "None.", bullets=failed, level=2)
    for zoo, rows in groups(frame, "zoo").items():
        yield _zoo(zoo, rows)
    if len(others):
        yield from _peers(others)


def _ranked(frame: pl.DataFrame, order: dict[tuple[str, str], int]) -> pl.DataFrame:
    """As the zoos have the models, not as processes happened to end."""
    ranks = [order.get(key, len(order)) for key in frame.select("zoo", "name").iter_rows()]
    return frame.sort(pl.Series(ranks), maintain_order=True)


def _summary(frame: pl.DataFrame) -> Section:
    lines = []
    for (zoo, dtype), rows in groups(frame, "zoo", "dtype").items():
        good, limit = list(rows.filter(pl.col("status") == "ok").iter_rows(named=True)), LIMITS[dtype]
        lines.append([
            zoo, dtype, len(rows), len(good), sum(row["outputs"] == "bit-identical" for row in good),
            f"{sum(row['total_error'] <= limit for row in good)} (≤ {limit:g})",
            sum(row["node_error"] <= limit for row in good), _worst(good, "total_error"), _worst(good, "node_error"),
            sum(all(part.startswith("constant ") for part in row["absorbed"].split("; ") if part) for row in good),
            sum(row["finite"] == "True" for row in good),
        ])  # fmt: skip
    columns = ["zoo", "precision", "models", "compile and run", "outputs bit-identical", "conserve", "at every node",
               "worst total", "worst node", "only constants absorb", "finite"]  # fmt: skip
    return Section(columns=columns, lines=lines)


def _worst(rows: list[Row], column: str) -> str:
    values = [row[column] for row in rows]
    return f"{next((value for value in values if value != value), max(values)):.1e}" if values else ""


def _made(frame: pl.DataFrame, others: pl.DataFrame, command: str) -> Section:
    """How the rows came to be; more than one line where they were not all made alike."""
    rows = pl.concat([frame.select("made", "date"), others.select("made", "date")])
    text = f"The last of the runs was `{command}`."
    text += f" Rows were measured from {rows['date'].min()} to {rows['date'].max()}." if len(rows) else ""
    return Section(text=text, bullets=[f"{made}: {len(some)} rows" for made, some in groups(rows, "made").items()])


def _conserves(row: Row) -> bool:
    return row["status"] == "ok" and row["total_error"] <= LIMITS[row["dtype"]] and row["finite"] == "True"


def _zoo(zoo: str, frame: pl.DataFrame) -> Section:
    precisions = [dtype for dtype in LIMITS if dtype in frame["dtype"]]
    columns = ["model", "group", "capture", "joins", "compile"]
    columns += [f"{what}, {dtype}" for dtype in precisions for what in ("worst node", "total")]
    lines = []
    for name, rows in groups(frame, "name").items():
        by = {row["dtype"]: row for row in rows.iter_rows(named=True)}
        row = next((row for row in by.values() if row["status"] == "ok"), next(iter(by.values())))
        seconds = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
        joins = "/".join(row[kind] for kind in JOINS).strip("/")
        errors = [cell for dtype in precisions for cell in _errors(by.get(dtype))]
        lines.append([name, row["group"], row["capture"], joins, seconds, *errors, row["absorbed"], row["outputs"]])
    return Section(zoo, columns=[*columns, "absorbed", "outputs"], lines=lines, level=2)


def _errors(row: Row | None) -> list[str]:
    if row is None:
        return ["", ""]
    if row["status"] != "ok":
        return ["failed", f"at {row['stage']}"]
    return [f"{row['node_error']:.1e}", f"{row['total_error']:.1e}"]


def _peers(frame: pl.DataFrame) -> Iterator[Section]:
    """Model × peer: Σ relevance at the input over what the peer started from."""

    def cell(row: Row) -> str:
        ratio = f"{row['ratio']:.4g}" if row["finite"] == "True" else "NaN"
        return f"**{ratio}**" if row["within_1_percent"] == "True" else ratio

    table = grid(frame.iter_rows(named=True), "name", "peer", cell, "model")
    counts = [f"{(rows['within_1_percent'] == 'True').sum()} of {len(rows)}" for rows in groups(frame, "peer").values()]
    text = ("Σ relevance at the input / start, of the item farthest from 1; bold within 1 %. Each peer is used as its "
            "documentation does, explains the predicted class from a start of its own, and gets activations out of place.")
    yield Section("Peers", text, level=2, columns=table["columns"], lines=[*table["lines"], ["within 1 %", *counts]])
    used = groups(frame.filter(pl.col("status") == "ok"), "peer", "start", "how")
    yield Section(text="Settings, with how many models they served:", bullets=[
        f"{peer}: start {start}; {how} ({len(rows)})" for (peer, start, how), rows in used.items()
    ])  # fmt: skip
    failed = [f"**{row['name']}**, {row['peer']}, at {row['stage']}: {verbatim(row['reason'])}"
              for row in frame.iter_rows(named=True) if row["status"] != "ok"]  # fmt: skip
    yield Section(text="Failures:", bullets=failed or ["None."])
