"""What the page of the coverage sweep says of its rows."""

from typing import Any

import polars as pl

from benchmarks.csv_table import CsvTable
from benchmarks.pages import Row, groups, in_order
from benchmarks.peers import PEERS
from benchmarks.zoo import ZOOS

LIMITS = {"float32": 1e-4, "float64": 1e-10}
COLUMNS = {"numbers": ("node_error", "total_error", "compile_s", "ratio"), "texts": (
    "zoo", "dtype", "peer", "group", "status", "stage", "reason", "capture", "joins_identity", "joins_projection",
    "joins_merge", "worst_node", "absorbed", "outputs", "finite", "within_1_percent", "start", "how", "made", "date",
)}  # fmt: skip


def context(models: CsvTable, peers: CsvTable) -> dict[str, Any]:
    """What the page may name; models come as the zoos have them, not as processes happened to end."""
    frame = in_order(models.frame(**COLUMNS).sort("dtype", maintain_order=True), "zoo", ZOOS)
    frame = pl.concat([frame.clear(), *(in_order(some, "name", ZOOS[zoo].members() if zoo in ZOOS else ())
                                        for zoo, some in groups(frame, "zoo").items())])  # fmt: skip
    others = in_order(in_order(peers.frame(**COLUMNS), "peer", PEERS), "name", ZOOS["torchvision"].members())
    rows = pl.concat([frame.select("made", "date"), others.select("made", "date")])
    return {
        "dates": (rows["date"].min(), rows["date"].max()),
        "made": [(how, len(some)) for how, some in groups(rows, "made").items()],
        "summary": [_summary(*key, some.rows(named=True)) for key, some in groups(frame, "zoo", "dtype").items()],
        "failed": sorted((row for row in frame.iter_rows(named=True) if not _conserves(row)),
                         key=lambda row: row["status"] == "ok"),
        "zoos": [(zoo, *_zoo(some)) for zoo, some in groups(frame, "zoo").items()],
        "peers": others.rows(named=True),
        "within": ["within 1 %", *(f"{(some['within_1_percent'] == 'True').sum()} of {len(some)}"
                                   for some in groups(others, "peer").values())],
        "settings": groups(others.filter(pl.col("status") == "ok"), "peer", "start", "how"),
    }  # fmt: skip


def _summary(zoo: str, dtype: str, rows: list[Row]) -> list[Any]:
    good, limit = [row for row in rows if row["status"] == "ok"], LIMITS[dtype]
    worst = []
    for error in ("total_error", "node_error"):
        # NaN is the worst, which max() would pass over.
        value = max((row[error] for row in good), key=lambda value: (value != value, value), default=None)
        worst.append("" if value is None else f"{value:.1e}".replace("nan", "NaN"))
    constants = [all(part.startswith("constant ") for part in row["absorbed"].split("; ") if part) for row in good]
    return [
        zoo, dtype, len(rows), len(good), sum(row["outputs"] == "bit-identical" for row in good),
        f"{sum(row['total_error'] <= limit for row in good)} (≤ {limit:g})",
        sum(row["node_error"] <= limit for row in good), *worst, sum(constants),
        sum(row["finite"] == "True" for row in good),
    ]  # fmt: skip


def _conserves(row: Row) -> bool:
    return row["status"] == "ok" and row["total_error"] <= LIMITS[row["dtype"]] and row["finite"] == "True"


def _zoo(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The columns of errors, and one line per model."""
    precisions = [dtype for dtype in LIMITS if dtype in frame["dtype"]]
    lines = []
    for name, rows in groups(frame, "name").items():
        by = {row["dtype"]: row for row in rows.iter_rows(named=True)}
        row = next((row for row in by.values() if row["status"] == "ok"), next(iter(by.values())))
        joins = "/".join(row[f"joins_{kind}"] for kind in ("identity", "projection", "merge")).strip("/")
        errors = [cell for dtype in precisions for cell in _errors(by.get(dtype))]
        seconds = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
        lines.append([name, row["group"], row["capture"], joins, seconds, *errors, row["absorbed"], row["outputs"]])
    return [f"{what}, {dtype}" for dtype in precisions for what in ("worst node", "total")], lines


def _errors(row: Row | None) -> list[str]:
    if row is None or row["status"] != "ok":
        return ["failed", f"at {row['stage']}"] if row else ["", ""]
    return [f"{row['node_error']:.1e}", f"{row['total_error']:.1e}"]
