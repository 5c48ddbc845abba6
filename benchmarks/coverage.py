"""Which models compile, how well they conserve, and what the peers keep: one row per model, each in its own process."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from benchmarks.coverage_worker import PEER_STAGES, STAGES
from benchmarks.csv_table import CsvTable
from benchmarks.pages import groups, in_order, page
from benchmarks.peers import PEERS
from benchmarks.provenance import CORES, MEMORY, commit, now, versions
from benchmarks.runs import HERE, checked, console, interruptible
from benchmarks.workers import Failure, Row, Worker
from benchmarks.zoo import ZOOS, smallest_classifiers

PACKAGES = ("fxlrp", "torch", "torchvision", "timm", "transformers", "autolrp", "zennit", "captum")
LIMITS = {"float32": 1e-4, "float64": 1e-10}
NUMBERS = ("node_error", "total_error", "compile_s", "ratio")
TEXTS = (
    "zoo", "dtype", "peer", "group", "status", "stage", "reason", "capture", "joins_identity", "joins_projection",
    "joins_merge", "worst_node", "absorbed", "outputs", "finite", "within_1_percent", "start", "how", "made", "date",
)  # fmt: skip
COLUMNS = dict.fromkeys(NUMBERS, pl.Float64) | dict.fromkeys(TEXTS, pl.String)


def main(
    zoo: Annotated[list[str] | None, typer.Option(help=f"Only this zoo; may be repeated: {', '.join(ZOOS)}.")] = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only models whose name fits, such as 'resnet*'.")] = "*",
    float64: Annotated[bool, typer.Option("--float64", help="In float64 as well.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="The peers too, on torchvision's families.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what has a row.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make the page anew.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once; they share the cores.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one stage of a model.")] = 1200,
    memory: Annotated[float, typer.Option(help="GiB for one model.")] = round(0.9 * MEMORY, 1),
    out: Annotated[Path, typer.Option(help="The folder of coverage.md and the CSV files.")] = HERE,
) -> None:
    """Sweep model zoos: what compiles, what conserves, and what the peers keep."""
    out.mkdir(parents=True, exist_ok=True)
    models = CsvTable(out / "coverage.csv", ("zoo", "name", "dtype"))
    shares = CsvTable(out / "coverage_peers.csv", ("name", "peer"))
    zoos = checked(zoo or ZOOS, ZOOS.__contains__, "zoo")
    precisions = ("float32", "float64") if float64 else ("float32",)
    rows = [{"zoo": zoo, "name": name, "group": group, "dtype": dtype}
            for zoo in zoos for name, group in ZOOS[zoo].members().items() for dtype in precisions]  # fmt: skip
    if peers and "torchvision" in zoos:
        rows += [{"name": name, "group": family, "peer": peer}
                 for name, family in smallest_classifiers().items() for peer in PEERS if peer != "lxt"]  # fmt: skip
    wanted = [] if page_only else [row for row in rows if fnmatch(row["name"], only)]

    def table(row: Row) -> CsvTable:
        return shares if "peer" in row else models

    def due(row: Row) -> bool:
        known = table(row).rows.get(table(row).key_of(row), {})
        return fresh or not known or (retry_failed and known["status"] == "failed")

    todo = list(filter(due, wanted))
    threads, numbers = max(1, CORES // jobs), count(1)
    console.print(f"{len(wanted)} rows asked for, {len(todo)} to measure")
    made = f"{versions(*PACKAGES)}; {commit()}; {threads} thread{'s' if threads > 1 else ''}"

    def start(row: Row) -> Worker:
        job = {"zoo": "torchvision", "dtype": "float32"} | row
        return Worker("benchmarks.coverage_worker", job, timeout, threads, memory)

    def enter(row: Row) -> None:
        table(row).add([row | {"made": made, "date": now()}])
        console.print(f"{next(numbers)} of {len(todo)}: {_told(row)}", markup=False)

    def write() -> None:
        (out / "coverage.md").write_text(page("coverage", **context(models, shares)))
        console.print(f"written: {out / 'coverage.md'}")

    with interruptible(write, "the same command goes on from here"):
        sweep(todo, jobs, start, enter)


def sweep(todo: Sequence[Row], jobs: int, start: Callable[[Row], Worker], enter: Callable[[Row], None]) -> None:
    """Measure the rows, ``jobs`` at a time; each is entered as soon as it is there."""
    running: set[Worker] = set()

    def measured(row: Row) -> Row:
        running.add(worker := start(row))
        found = {"status": "ok", "stage": ""}
        try:
            for stage, do in (PEER_STAGES if "peer" in row else STAGES).items():
                found |= worker.ask(stage, do) | worker.ask(stage, "peak")
        except Failure as failure:
            found |= failure.row
        finally:
            running.remove(worker)
            worker.close()
        return row | found

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(measured, row) for row in todo]
        try:
            for future in as_completed(futures):
                enter(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # a thread may just be starting its worker
                for worker in list(running):
                    worker.kill()
                time.sleep(0.1)


def _told(row: Row) -> str:
    head = f"{row['name']} ({row.get('peer') or row['dtype']}): "
    if row["status"] != "ok":
        return f"{head}failed at {row['stage']}: {row['reason'][:160]}"
    if "peer" in row:
        return f"{head}Σ relevance / start {row['ratio']:.4g}"
    return f"{head}worst node {row['node_error']:.4g}, total {row['total_error']:.4g}, outputs {row['outputs']}"


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
