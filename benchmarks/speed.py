"""How fast explanations are, beside autograd and other implementations: ``python -m benchmarks.speed --help``.

Rows go into ``speed.csv`` as each model and batch is done; ``results.md`` and ``results.png`` are made of all rows.
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.interleaved import COLUMNS, KEY, measure
from benchmarks.origin import CORES, MEMORY
from benchmarks.speed_methods import METHODS
from benchmarks.speed_models import MODELS, known, native_size
from benchmarks.speed_page import speed_page
from benchmarks.speed_plot import draw
from benchmarks.speed_process import Case, Settings
from benchmarks.table import Table

HERE = Path(__file__).parent
BATCHES = (1, 8, 32)
BUSY = 0.25
"""So many cores in use by others spoil a measurement: threads that wait for one another wait for these."""

Names = list[str] | None


def main(
    model: Annotated[Names, typer.Option(help=f"May be repeated. Default: {', '.join(MODELS)}.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1, 8, 32.")] = None,
    method: Annotated[Names, typer.Option(help=f"May be repeated, of: {', '.join(METHODS)}. Default: all.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = min(2, CORES),
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one call, or one set-up.")] = 900,
    memory: Annotated[float, typer.Option(help="GiB for all processes together.")] = round(0.85 * MEMORY, 1),
    only_missing: Annotated[bool, typer.Option("--only-missing", help="Skip what has all its rows.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make page and plot anew.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of speed.csv, results.md and results.png.")] = HERE,
) -> None:
    """Time models, explanations of them, and peers, in turn."""
    out.mkdir(parents=True, exist_ok=True)
    table = Table(out / "speed.csv", COLUMNS, KEY)
    console = Console()
    interrupted = False
    if not page_only:
        models, batches = checked(model or MODELS, known, "model"), batch or BATCHES
        methods = checked(method or METHODS, METHODS.__contains__, "method")
        cases = [Case(name, size, native_size(name)) for name in models for size in batches]
        settings = Settings(rounds=rounds, threads=threads, timeout=timeout, memory=memory, device=device)
        interrupted = sweep(cases, methods, settings, table, console, only_missing=only_missing)
    rows = list(table.rows.values())
    (out / "results.md").write_text(speed_page(rows))
    console.print(f"written: {out / 'results.md'}")
    if draw(rows, out / "results.png"):
        console.print(f"written: {out / 'results.png'}")
    if interrupted:
        raise typer.Exit(130)


def sweep(
    cases: Sequence[Case], methods: Sequence[str], settings: Settings, table: Table, console: Console, *,
    only_missing: bool = False,
) -> bool:  # fmt: skip
    """Measure every case and enter its rows; whether it was interrupted.

    Args:
        cases: what to explain.
        methods: by name; where one does not apply it has no row.
        settings: how.
        table: gets a row a case and method.
        console: is told.
        only_missing: skip cases that have all their rows; others are measured anew as a whole, for ratios are of one
            run.
    """
    if settings.device not in ("cpu", "cuda") or (settings.device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"no device {settings.device} here")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as if by Ctrl-C: nothing is left running
    try:
        for done, case in enumerate(cases):
            wanted = [name for name in methods if settings.methods[name].suits(case.model, settings.device)]
            head = f"{case.model}, batch {case.batch}, {case.size} × {case.size} ({done + 1} of {len(cases)})"
            if only_missing and all(_key(case, name, settings) in table.rows for name in wanted):
                console.print(f"{head}: all there")
                continue
            console.print(head)
            with console.status("") as status:
                rows = measure(case, wanted, settings, status.update)
            for row in rows:
                console.print(_line(table.add(row)), markup=False, highlight=False, soft_wrap=True)
            if (rows[0]["busy"] or 0) > BUSY:
                console.print(f"  other work kept {rows[0]['busy']:.1f} cores busy: these ratios are worth little")
    except KeyboardInterrupt:
        console.print("interrupted: the same command with --only-missing goes on from here")
        return True
    return False


def checked(names: Any, fits: Any, what: str) -> list[str]:
    """The names, if all of them fit."""
    unknown = [name for name in names if not fits(name)]
    if unknown:
        raise typer.BadParameter(f"no {what} {', '.join(unknown)}")
    return list(names)


def _key(case: Case, method: str, settings: Settings) -> tuple[str, ...]:
    return settings.device, case.model, str(case.size), str(case.batch), method


def _line(row: dict[str, str]) -> str:
    if row["status"] != "ok":
        return f"  {row['method']}: failed at {row['stage']}: {row['reason'][:160]}"
    ratio, least, most = (f"{float(row[column]):.2f}" for column in ("ratio", "ratio_min", "ratio_max"))
    return (
        f"  {row['method']}: {ratio} ({least} to {most}), {float(row['seconds']):.4f} s, set-up "
        f"{float(row['setup_s']):.2f} s, first call {float(row['first_s']):.2f} s"
    )


if __name__ == "__main__":
    typer.run(main)
