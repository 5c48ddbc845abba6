"""Which models compile, how well they conserve, and what the peers keep: one row per model, each in its own process."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.coverage_page import context
from benchmarks.coverage_worker import PEER_STAGES, STAGES
from benchmarks.csv_table import CsvTable
from benchmarks.pages import page
from benchmarks.peers import PEERS
from benchmarks.provenance import CORES, MEMORY, commit, now, versions
from benchmarks.runs import checked, interruptible
from benchmarks.workers import Failure, Row, Worker
from benchmarks.zoo import ZOOS, smallest_classifiers

HERE = Path(__file__).parent
PACKAGES = ("fxlrp", "torch", "torchvision", "timm", "transformers", "autolrp", "zennit", "captum")


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
    console, threads, numbers = Console(soft_wrap=True, highlight=False), max(1, CORES // jobs), count(1)
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

    with interruptible(write, console, "the same command goes on from here"):
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
        futures = waiting = {pool.submit(measured, row) for row in todo}
        try:
            while waiting:
                # Not longer, so that Ctrl-C is heard where another thread gets the signal.
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
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
