"""What the page of the coverage sweep says of its rows."""

from typing import Any

import polars as pl

from benchmarks.csv_table import CsvTable
from benchmarks.pages import groups, in_order
from benchmarks.peers import PEERS
from benchmarks.zoo import ZOOS

LIMITS = {"float32": 1e-4, "float64": 1e-10}
NUMBERS = ("node_error", "total_error", "compile_s", "ratio")
TEXTS = (
    "zoo", "dtype", "peer", "group", "status", "stage", "reason", "capture", "joins_identity", "joins_projection",
    "joins_merge", "worst_node", "absorbed", "outputs", "finite", "within_1_percent", "start", "how", "made", "date",
)  # fmt: skip
COLUMNS = dict.fromkeys(NUMBERS, pl.Float64) | dict.fromkeys(TEXTS, pl.String)


def context(models: CsvTable, peers: CsvTable) -> dict[str, Any]:
    """What the page may name; models come as the zoos have them, not as processes happened to end."""
    frame, others = models.frame(COLUMNS), peers.frame(COLUMNS)
    known = [(zoo, name) for zoo in ZOOS for name in ZOOS[zoo].members()]
    places = pl.DataFrame(known, schema=["zoo", "name"], orient="row").with_row_index("place")
    ok, finite = pl.col("status") == "ok", pl.col("finite") == "True"
    frame = frame.join(places, on=["zoo", "name"], how="left").sort("place", "dtype", nulls_last=True).with_columns(
        limit=pl.col("dtype").replace_strict(LIMITS, return_dtype=pl.Float64),
    ).with_columns(conserves=(ok & finite & (pl.col("total_error") <= pl.col("limit"))).fill_null(False))  # fmt: skip
    others = in_order(in_order(others, "peer", PEERS), "name", ZOOS["torchvision"].members())
    rows = pl.concat([frame.select("made", "date"), others.select("made", "date")])
    return {
        "dates": (rows["date"].min(), rows["date"].max()),
        "made": [(how, len(some)) for how, some in groups(rows, "made").items()],
        "summary": _summary(frame).rows(named=True),
        "failed": frame.filter(~pl.col("conserves")).sort(ok, maintain_order=True).rows(named=True),
        "zoos": [(zoo, [dtype for dtype in LIMITS if dtype in some["dtype"]], [
            {row["dtype"]: row for row in rows.iter_rows(named=True)} for rows in groups(some, "name").values()
        ]) for zoo, some in groups(frame, "zoo").items()],
        "peers": others.rows(named=True),
        "within": ["within 1 %", *(f"{(some['within_1_percent'] == 'True').sum()} of {len(some)}"
                                   for some in groups(others, "peer").values())],
        "settings": groups(others.filter(ok), "peer", "start", "how"),
    }  # fmt: skip


def _summary(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per zoo and precision: how many of the models that run do what, and the worst errors."""
    ok, constant = pl.col("status") == "ok", pl.col("absorbed").str.contains("^(constant [^;]*(; )?)*$")
    return frame.group_by("zoo", "dtype", "limit", maintain_order=True).agg(
        models=pl.len(),
        run=ok.sum(),
        identical=(ok & (pl.col("outputs") == "bit-identical")).sum(),
        conserve=(ok & (pl.col("total_error") <= pl.col("limit"))).sum(),
        at_every_node=(ok & (pl.col("node_error") <= pl.col("limit"))).sum(),
        # max() would pass over NaN, which is the worst.
        worst_total=pl.col("total_error").filter(ok).nan_max(),
        worst_node=pl.col("node_error").filter(ok).nan_max(),
        constants=(ok & constant).sum(),
        finite=(ok & (pl.col("finite") == "True")).sum(),
    )
