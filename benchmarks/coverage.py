"""Which models compile, how well they conserve, and what the peers keep: one row per model, each in its own process."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.coverage_page import context
from benchmarks.csv_table import CsvTable
from benchmarks.pages import page
from benchmarks.peers import PEERS
from benchmarks.provenance import CORES, MEMORY, commit, now, versions
from benchmarks.runs import checked
from benchmarks.workers import Failure, Row, Worker, wait
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
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one model.")] = 1200,
    memory: Annotated[float, typer.Option(help="GiB for one model.")] = round(0.9 * MEMORY, 1),
    out: Annotated[Path, typer.Option(help="The folder of coverage.md and the CSV files.")] = HERE,
) -> None:
    """Sweep model zoos: what compiles, what conserves, and what the peers keep."""
    out.mkdir(parents=True, exist_ok=True)
    models = CsvTable(out / "coverage.csv", ("zoo", "name", "dtype"))
    shares = CsvTable(out / "coverage_peers.csv", ("name", "peer"))
    zoos = checked(zoo or ZOOS, ZOOS.__contains__, "zoo")
    wanted = [] if page_only else list(_models(zoos, only, ["float32", "float64"] if float64 else ["float32"], peers))
    todo = []
    for row in wanted:
        table = shares if "peer" in row else models
        status = table.rows.get(table.key_of(row), {}).get("status")
        todo += [(row, table)] if fresh or not status or (retry_failed and status == "failed") else []
    console, threads = Console(soft_wrap=True, highlight=False), max(1, CORES // jobs)
    console.print(f"{len(wanted)} rows asked for, {len(todo)} to measure")
    made, finished = f"{versions(*PACKAGES)}; {commit()}; {threads} thread{'s' if threads > 1 else ''}", True
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as if by Ctrl-C: nothing is left running
    try:
        for number, (row, table) in enumerate(_measured(todo, jobs, timeout, threads, memory), start=1):
            table.add([row | {"made": made, "date": now()}])
            console.print(f"{number} of {len(todo)}: {_told(row)}", markup=False)
    except KeyboardInterrupt:
        finished = False
        console.print("interrupted: the same command goes on from here")
    (out / "coverage.md").write_text(page("coverage", **context(models, shares)))
    console.print(f"written: {out / 'coverage.md'}")
    raise typer.Exit(0 if finished else 130)


def _models(zoos: Sequence[str], only: str, precisions: Sequence[str], peers: bool) -> Iterator[Row]:
    """The columns of each wanted row that are known beforehand."""
    for zoo in zoos:
        for name, group in ZOOS[zoo].members().items():
            if fnmatch(name, only):
                yield from ({"zoo": zoo, "name": name, "group": group, "dtype": dtype} for dtype in precisions)
    if peers and "torchvision" in zoos:
        for name, family in smallest_classifiers().items():
            if fnmatch(name, only):
                yield from ({"name": name, "group": family, "peer": peer} for peer in PEERS if peer != "lxt")


def _measured(
    todo: Sequence[tuple[Row, CsvTable]], jobs: int, timeout: float, threads: int, memory: float
) -> Iterator[tuple[Row, CsvTable]]:
    """The rows, as they come, ``jobs`` at a time."""
    waiting, running = list(reversed(todo)), {}
    with ExitStack() as stack:
        while waiting or running:
            if waiting and len(running) < jobs:
                row, table = waiting.pop()
                job = {"zoo": "torchvision", "dtype": "float32", "peer": ""} | row
                worker = Worker("benchmarks.coverage_worker", job, timeout, threads, memory)
                stack.callback(worker.close)
                worker.send("measure", do="measure")
                running[worker] = row, table
                continue
            wait(list(running))
            for worker, (row, table) in list(running.items()):
                try:
                    reply = worker.poll()
                except Failure as failure:
                    reply = {"stage": "start", **worker.progress, "status": "failed", "reason": failure.reason}
                if reply is not None:
                    worker.close()
                    del running[worker]
                    yield {**reply, **row}, table


def _told(row: Row) -> str:
    head = f"{row['name']} ({row.get('peer') or row['dtype']}): "
    if row["status"] != "ok":
        return f"{head}failed at {row['stage']}: {row['reason'][:160]}"
    if "peer" in row:
        return f"{head}Σ relevance / start {row['ratio']:.4g}"
    return f"{head}worst node {row['node_error']:.4g}, total {row['total_error']:.4g}, outputs {row['outputs']}"
