"""Which models compile, and how well they conserve: ``python -m benchmarks.coverage --help``.

A row a model is appended to ``coverage.csv`` as it is found, and ``coverage.md`` is written from all rows at
the end; what already has a row is not measured again.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from benchmarks.origin import CORES, MEMORY, commit, versions
from benchmarks.peers import PEERS
from benchmarks.processes import Job, measured
from benchmarks.report import coverage_page
from benchmarks.table import COVERAGE, PEER_COVERAGE, Table
from benchmarks.zoo import ZOOS, smallest_classifiers

HERE = Path(__file__).parent
PACKAGES = ("fxlrp", "torch", "torchvision", "timm", "transformers", "autolrp", "zennit", "captum")


class Rate(ProgressColumn):
    """Models a minute."""

    def render(self, task: Task) -> Text:
        per_minute = 60 * task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{per_minute:.1f}/min")


def main(
    zoo: Annotated[list[str] | None, typer.Option(help=f"Only this zoo; may be repeated: {', '.join(ZOOS)}.")] = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only models whose name fits, such as 'resnet*'.")] = "*",
    float64: Annotated[bool, typer.Option("--float64", help="In float64 as well.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="The peers too, on torchvision's families.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what has a row.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once; they share the cores.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one model.")] = 1200,
    memory: Annotated[float, typer.Option(help="GiB for one model.")] = round(0.9 * MEMORY, 1),
    out: Annotated[Path, typer.Option(help="The folder of coverage.md and the CSV files.")] = HERE,
) -> None:
    """Sweep model zoos: what compiles, what conserves, and what the peers keep."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        False: Table(out / "coverage.csv", COVERAGE, ("zoo", "name", "dtype")),
        True: Table(out / "coverage_peers.csv", PEER_COVERAGE, ("name", "peer")),
    }
    unknown = set(zoo or ()) - ZOOS.keys()
    if unknown:
        raise typer.BadParameter(f"no zoo {', '.join(unknown)}: choose of {', '.join(ZOOS)}")
    limit = ("--memory", str(memory))
    wanted = list(_models(zoo or list(ZOOS), only, ["float32", "float64"] if float64 else ["float32"], limit))
    if peers and "torchvision" in (zoo or ZOOS):
        wanted += _with_peers(only, limit)

    for is_peer, table in tables.items():
        keys = {table.key_of(job.identity) for job in wanted if ("peer" in job.identity) is is_peer}
        again = (key for key in keys if fresh or (retry_failed and table.rows.get(key, {}).get("status") == "failed"))
        table.drop(again)
    todo = [job for job in wanted if (t := tables["peer" in job.identity]).key_of(job.identity) not in t.rows]

    console = Console()
    console.print(f"{len(wanted)} rows asked for, {len(wanted) - len(todo)} are there")
    threads = max(1, CORES // jobs)
    interrupted = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as if by Ctrl-C: nothing is left running
    try:
        _sweep(todo, tables, console, jobs=jobs, timeout=timeout, threads=threads)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: the same command goes on from here")
    (out / "coverage.md").write_text(coverage_page(_in_order(tables[False]), _in_order(tables[True]), _command()))
    console.print(str(out / "coverage.md"))
    if interrupted:
        raise typer.Exit(130)


def _models(zoos: list[str], only: str, precisions: list[str], arguments: tuple[str, ...]) -> Iterator[Job]:
    for zoo in zoos:
        for name, group in ZOOS[zoo].members().items():
            for dtype in precisions:
                if fnmatch(name, only):
                    identity = {"zoo": zoo, "name": name, "group": group, "dtype": dtype}
                    yield Job(f"{zoo}:{name}", ("--dtype", dtype, *arguments), identity)


def _with_peers(only: str, arguments: tuple[str, ...]) -> list[Job]:
    return [
        Job(f"torchvision:{name}", ("--peer", peer, *arguments), {"name": name, "group": family, "peer": peer})
        for name, family in smallest_classifiers().items() if fnmatch(name, only)
        for peer in PEERS
    ]  # fmt: skip


def _sweep(
    todo: list[Job], tables: dict[bool, Table], console: Console, *, jobs: int, timeout: float, threads: int
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    made = f"{versions(*PACKAGES)}; {commit()}; {threads} thread{'s' if threads > 1 else ''}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
        console=console, speed_estimate_period=3600,
    ) as progress:  # fmt: skip
        bar = progress.add_task("", total=len(todo))

        def started(running: list[Job]) -> None:
            progress.update(bar, description=", ".join(job.identity["name"] for job in running))

        for row in measured(todo, at_once=jobs, timeout=timeout, environment=environment, started=started):
            date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
            told = tables["peer" in row].add(row | {"made": made, "date": date})
            progress.advance(bar)
            progress.console.print(_line(told), markup=False, highlight=False, soft_wrap=True)


def _line(row: dict[str, str]) -> str:
    head = f"{row['name']} ({row.get('peer') or row['dtype']}): "
    if row["status"] != "ok":
        return f"{head}failed at {row['stage']}: {row['reason'][:160]}"
    if "peer" in row:
        return f"{head}Σ relevance / start {row['ratio']}"
    return f"{head}worst node {row['node_error']}, total {row['total_error']}, outputs {row['outputs']}"


def _in_order(table: Table) -> list[dict[str, str]]:
    """As the zoos have it, not as processes happened to end."""
    order = {(zoo, name): i for i, (zoo, name) in enumerate((z, n) for z, zoo in ZOOS.items() for n in zoo.members())}
    peers = list(PEERS)

    def place(row: dict[str, str]) -> Any:
        key = (row.get("zoo", "torchvision"), row["name"])
        return order.get(key, len(order)), peers.index(row["peer"]) if row.get("peer") in peers else 0, row.get("dtype")

    return sorted(table.rows.values(), key=place)


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks.coverage", *sys.argv[1:]])


if __name__ == "__main__":
    typer.run(main)
