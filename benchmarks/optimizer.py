"""What each optimisation of the emitted program brings: ``python -m benchmarks.optimizer --help``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.interleaved import COLUMNS, KEY
from benchmarks.origin import CORES, MEMORY
from benchmarks.report import grouped
from benchmarks.speed import Names, checked, sweep
from benchmarks.speed_methods import Method, fxlrp_method
from benchmarks.speed_models import known, native_size
from benchmarks.speed_process import Case, Settings
from benchmarks.speed_sheet import number, sheets
from benchmarks.table import Row, Table
from fxlrp.common.text_tables import markdown
from fxlrp.passes.optimize import DEFAULT, EMITTED, NAMES, PASSES

HERE = Path(__file__).parent
ALL = "all"
HEATMAP = "heatmap, "
MATTER_TO_HEATMAPS = ("sum_channels",)
"""The optimisations that nothing but a heatmap has use for."""


def variants() -> dict[str, Method]:
    """Programs with all optimisations, with none, without one, and with one more than all."""
    chosen: dict[str, bool | list[str]] = {ALL: True, "none": False}
    for name in NAMES:
        if name in DEFAULT:
            chosen[f"without {name}"] = [other for other in DEFAULT if other != name]
        else:
            chosen[f"with {name}"] = [*DEFAULT, name]
    explanations = {name: fxlrp_method(channels_last=True, optimize=names) for name, names in chosen.items()}
    heatmaps = (ALL, "none", *(f"without {name}" for name in MATTER_TO_HEATMAPS))
    return explanations | {
        HEATMAP + name: fxlrp_method(channels_last=True, heatmap=True, optimize=chosen[name]) for name in heatmaps
    }


METHODS = variants()


def main(
    model: Annotated[Names, typer.Option(help="May be repeated. Default: resnet50.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1, 8.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = min(2, CORES),
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one call, or one set-up.")] = 900,
    memory: Annotated[float, typer.Option(help="GiB for all processes together.")] = round(0.85 * MEMORY, 1),
    only_missing: Annotated[bool, typer.Option("--only-missing", help="Skip what has all its rows.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make the page anew.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of optimizer.csv and optimizer.md.")] = HERE,
) -> None:
    """Time explainers with all optimisations, with none, and without each of them, in turn."""
    out.mkdir(parents=True, exist_ok=True)
    table, console = Table(out / "optimizer.csv", COLUMNS, KEY), Console()
    interrupted = False
    if not page_only:
        names = checked(model or ["resnet50"], known, "model")
        cases = [Case(name, size, native_size(name)) for name in names for size in batch or (1, 8)]
        settings = Settings(
            registry="benchmarks.optimizer", yardstick=ALL, rounds=rounds, threads=threads, timeout=timeout,
            memory=memory, device=device,
        )  # fmt: skip
        interrupted = sweep(cases, list(METHODS), settings, table, console, only_missing=only_missing)
    (out / "optimizer.md").write_text(page(table.rows.values()))
    console.print(f"written: {out / 'optimizer.md'}")
    if interrupted:
        raise typer.Exit(130)


def page(rows: Iterable[Row]) -> str:
    """The rows as a page."""
    rows = list(rows)
    lines = [
        "# What the optimiser brings", "",
        "Time of an explanation, or a heatmap, as a multiple of the explanation with all default optimisations, in the "
        "same round: median, in brackets the least and the largest. Above 1: slower without it. Each variant is a "
        "process of its own, which take turns. Channels-last, default preset, random weights; a name is one of "
        "`fxlrp.compile(optimize=[…])`. Memory: MiB beyond model and images, at the peak of one call beyond what is "
        "held between calls / held between calls. Made with `python -m benchmarks.optimizer`.", "",
    ]  # fmt: skip
    for sheet in sheets(rows):
        for model in sheet.models:
            those = [row for row in sheet.rows if row["model"] == model]
            lines += [f"## {model}, {sheet.name}", "", *_made(those), "", _table(those), ""]
    lines += ["## The optimisations", "", *_described()]
    return "\n".join(lines) + "\n"


def _made(rows: list[Row]) -> list[str]:
    columns = ("batch", "threads", "rounds", "torch", "dtype", "size", "date")
    made = {tuple(row[column] for column in columns) for row in rows if row["status"] == "ok"}
    return [
        f"- batch {batch}: {threads} thread(s), {rounds} rounds; torch {torch}, {dtype}; {size} × {size}; {date}"
        for batch, threads, rounds, torch, dtype, size, date in sorted(made, key=lambda one: (int(one[0]), one))
    ]


def _table(rows: list[Row]) -> str:
    batches = sorted({int(row["batch"]) for row in rows})
    by = {name: {int(row["batch"]): row for row in those}
          for name, those in grouped(rows, lambda row: row["method"]).items()}  # fmt: skip
    columns = ["optimisations"]
    for batch in batches:
        columns += [f"time, batch {batch}", f"memory, batch {batch}"]
    names = [*(name for name in METHODS if name in by), *(name for name in by if name not in METHODS)]
    lines = [[name, *(cell for batch in batches for cell in _cells(by[name].get(batch)))] for name in names]
    return markdown(columns, lines)


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", ""]
    if row["status"] != "ok":
        return [f"fails at {row['stage']}: {row['reason'][:80]}", ""]
    time = f"{number(row, 'ratio'):.3f} ({number(row, 'ratio_min'):.3f}–{number(row, 'ratio_max'):.3f})"
    if row["method"] == ALL:
        time = f"1 ({number(row, 'seconds'):.3g} s)"
    return [time, f"{number(row, 'call_mb'):.0f} / {number(row, 'held_mb'):.0f}" if row["call_mb"] else ""]


def _described() -> list[str]:
    told = {name: EMITTED.get(name) or (type(PASSES[name]).__doc__ or "").strip().partition("\n")[0] for name in NAMES}
    return [f"- `{name}`{'' if name in DEFAULT else ' (not by default)'}: {text}" for name, text in told.items()]


if __name__ == "__main__":
    typer.run(main)
