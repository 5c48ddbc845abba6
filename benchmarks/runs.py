"""What all timing benchmarks share: the command, the sweep over cases, and the files that it writes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import polars as pl
import torch
import typer
from rich.console import Console

from benchmarks.harness import PLACEBO, Entry, Settings, measure
from benchmarks.methods import Case
from benchmarks.models import is_model, native_size
from benchmarks.pages import CsvTable, Panels, draw, page, ratio, timing_context
from benchmarks.workers import CORES, HERE

KEY = ("device", "model", "size", "batch", "variant", "compared", "method", "part")
COLUMNS = {"size": pl.Int64, "batch": pl.Int64} | dict.fromkeys((
    "ratio", "ratio_min", "ratio_max", "seconds", "peak_mb", "call_mb", "held_mb", "setup_s", "first_s", "busy",
    "processor_ratio"), pl.Float64) | dict.fromkeys((
    "status", "stage", "reason", "device_name", "threads", "torch", "dtype", "rounds", "date", "version",
    "memory_format", "run"), pl.String)  # fmt: skip
BUSY = 0.25
"""So many cores in use by others spoil a measurement: threads that wait for one another wait for these."""
LIMIT = 0.02
"""A case is slower than before if it is so by this share beyond the placebo."""
console = Console(soft_wrap=True, highlight=False)

Cases = Callable[[Sequence[str] | None, Sequence[int] | None], list[Case]]


@dataclass(frozen=True)
class Benchmark:
    """One timing benchmark: its name, what its help says, the methods that it times as `Settings` has them, its cases.

    ``context`` makes what the page may name of the rows; ``facts`` are columns of its own, with the format of their
    figures; ``default`` names the methods that are timed unless others are asked for; ``panels`` are of its picture.
    """

    name: str
    about: str
    methods: str
    cases: Cases
    context: Callable[[pl.DataFrame], dict[str, Any]] = lambda frame: {}
    facts: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 15
    threads: int = min(2, CORES)
    default: Sequence[str] = ()
    panels: Callable[[pl.DataFrame], Panels] | None = None


def every(models: Sequence[str], batches: Sequence[int], variants: Sequence[str] = ("",)) -> Cases:
    """Each model in each batch and variant; models and batches may be asked for."""
    return lambda wanted, sizes: [
        Case(name, batch, native_size(name), variant)
        for name in checked(wanted or models, is_model, "model") for batch in sizes or batches for variant in variants
    ]  # fmt: skip


def listed(*cases: Case) -> Cases:
    """These cases, or those of them whose model or batch is asked for."""
    return lambda models, batches: [
        case for case in cases if (not models or case.model in models) and (not batches or case.batch in batches)
    ]


def command(benchmark: Benchmark) -> Callable[..., None]:
    """The function of which typer makes the command."""
    methods = resolve_name(benchmark.methods)
    default, yardstick = list(benchmark.default or methods), next(iter(methods))

    def main(
        model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
        batch: Annotated[list[int] | None, typer.Option(min=1, help="Only this batch; may be repeated.")] = None,
        method: Annotated[list[str] | None, typer.Option(help=f"Repeatable. Default: {', '.join(default)}.")] = None,
        variant: Annotated[str, typer.Option(help="Only cases whose variant contains this.")] = "",
        against: Annotated[str, typer.Option(metavar="PATH", help="Another checkout: time fxlrp of both.")] = "",
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
        rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = benchmark.rounds,
        threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = benchmark.threads,
        timeout: Annotated[float, typer.Option(min=1, help="Seconds for one call, or one set-up.")] = 900,
        together: Annotated[int, typer.Option(min=1, help="Methods that take turns, in groups.")] = 6,
        only_missing: Annotated[bool, typer.Option("--only-missing", help="Go on: skip what has its rows.")] = False,
        page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make the page anew.")] = False,
        out: Annotated[Path, typer.Option(help="The folder of the CSV file, the page and the picture.")] = HERE,
    ) -> None:
        checked([device], lambda name: name == "cpu" or (name == "cuda" and torch.cuda.is_available()), "device")
        chosen = checked(method or default, methods.__contains__, "method")
        cases = [case for case in benchmark.cases(model, batch) if variant in case.variant]
        if not cases:
            raise typer.BadParameter("no case has this model, batch and variant")
        settings = Settings(benchmark.methods, rounds, threads, timeout, together, device)
        out.mkdir(parents=True, exist_ok=True)
        table = CsvTable(out / f"{benchmark.name}{'_against' if against else ''}.csv", KEY)
        contests: list[tuple[Case, str, dict[str, Entry]]] = []
        for case in cases:
            suiting = [name for name in chosen if methods[name].suits(case.model, device)]
            if against:  # each method of fxlrp beside the other checkout's
                contests += [(case, name, {"before": (name, str(Path(against).resolve())), "now": (name, "")})
                             for name in suiting if methods[name].package == "fxlrp"]  # fmt: skip
            else:  # all side by side
                contests.append((case, "", {name: (name, "") for name in dict.fromkeys([yardstick, *suiting])}))
        try:
            for number, contest in enumerate([] if page_only else contests, start=1):
                console.print(f"{number} of {len(contests)}", end=" ")
                _enter(*contest, settings, table, only_missing)
        finally:  # also where Ctrl-C comes first
            write_files(benchmark, table, compared=bool(against))

    return main


def _enter(
    case: Case, compared: str, entries: Mapping[str, Entry], settings: Settings, table: CsvTable, only_missing: bool
) -> None:
    """Measure what is timed side by side, as a whole because ratios are of one run, and enter its rows."""
    known = {**asdict(case), "device": settings.device, "compared": compared}
    keys = {table.key_of({**known, "method": name}) for name in entries}
    console.print(*filter(None, (case.model, case.variant, compared, f"batch {case.batch}, {case.size} × {case.size}")))
    if only_missing and keys <= table.rows.keys():
        console.print("  is there")
        return
    with console.status("") as status:
        rows = measure(case, entries, settings, status.update)
    table.rows = {key: row for key, row in table.rows.items() if (*key[:-1], "") not in keys}  # all parts of a method
    table.add({"compared": compared, **row} for row in rows)
    for row in rows:
        if row["status"] != "ok":
            console.print(f"  {row['method']}: failed at {row['stage']}: {row['reason'][:160]}", markup=False)
        elif not row.get("part"):
            times = f"{row['seconds']:.4f} s, set-up {row['setup_s']:.2f} s, first call {row['first_s']:.2f} s"
            console.print(f"  {row['method']}: {ratio(row, 3)}, {times}")
    if (rows[0]["busy"] or 0) > BUSY:
        console.print(f"  other work kept {rows[0]['busy']:.1f} cores busy: these ratios are worth little")


def write_files(benchmark: Benchmark, table: CsvTable, compared: bool = False) -> None:
    """The page, and the picture if there is one, of what the table has."""
    if not table.rows:
        raise typer.BadParameter(f"no rows: {table.path} is missing, or no method applies")
    frame, path = table.frame(COLUMNS), table.path
    context = timing_context(frame, dict(benchmark.facts)) | (comparison if compared else benchmark.context)(frame)
    path.with_suffix(".md").write_text(page("against" if compared else path.stem, **context))
    drawn = benchmark.panels and not compared and draw(benchmark.panels(frame), path.with_suffix(".png"))
    console.print(f"written: {path}, .md{', .png' if drawn else ''}")


def comparison(frame: pl.DataFrame) -> dict[str, Any]:
    """Which cases are slower than in the other checkout."""
    index, now, placebo = ["compared", "model", "size", "variant", "batch"], pl.col("now"), pl.col(PLACEBO)
    cases = frame.filter(pl.col("part") == "").pivot("method", index=index, values="ratio")
    return {"slower": cases.filter(now - 1 - (placebo - 1).abs() > LIMIT).rows(named=True), "count": len(cases)}


def checked(names: Iterable[str], fits: Callable[[str], bool], what: str) -> list[str]:
    """The names, if all of them fit."""
    if unknown := [name for name in names if not fits(name)]:
        raise typer.BadParameter(f"no {what} {', '.join(unknown)}")
    return list(names)
