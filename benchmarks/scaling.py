"""How the cost of an explanation grows with depth, resolution and batch: ``python -m benchmarks.scaling --help``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.interleaved import COLUMNS, KEY
from benchmarks.origin import CORES, MEMORY
from benchmarks.speed import Names, checked, sweep
from benchmarks.speed_methods import METHODS, YARDSTICK
from benchmarks.speed_plot import COLOURS, ratio_axis
from benchmarks.speed_process import Case, Settings
from benchmarks.speed_sheet import number, sheets
from benchmarks.table import Row, Table
from fxlrp.common.text_tables import markdown, verbatim

HERE = Path(__file__).parent
TIMED = (
    "forward", "fxlrp eager", "fxlrp channels-last", "captum LRP", "autolrp composite", "zennit EpsilonPlus",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """What grows while all else stays as it is.

    Attributes:
        title: of its table.
        label: of the axis in the plot.
        cases: by the value on the axis.
    """

    title: str
    label: str
    cases: dict[int, Case]


AXES = {
    "depth": Axis(
        "Depth: residual networks for 32 × 32 pictures, batch 4", "layers",
        {depth: Case(f"cifar_resnet{depth}", 4, 32) for depth in (20, 56, 110, 302, 602, 1202)},
    ),
    "resolution": Axis(
        "Resolution: resnet50, batch 1", "height and width",
        {size: Case("resnet50", 1, size) for size in (112, 224, 448, 896)},
    ),
    "batch": Axis(
        "Batch: resnet50, 224 × 224", "batch", {batch: Case("resnet50", batch, 224) for batch in (1, 2, 4, 8, 16, 32)}
    ),
}  # fmt: skip


def main(
    axis: Annotated[Names, typer.Option(help=f"May be repeated, of: {', '.join(AXES)}. Default: all.")] = None,
    method: Annotated[Names, typer.Option(help=f"May be repeated. Default: {', '.join(TIMED)}.")] = None,
    largest: Annotated[int | None, typer.Option(min=1, help="Leave out larger values of the axes.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = min(2, CORES),
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one call, or one set-up.")] = 900,
    memory: Annotated[float, typer.Option(help="GiB for all processes together.")] = round(0.85 * MEMORY, 1),
    only_missing: Annotated[bool, typer.Option("--only-missing", help="Skip what has all its rows.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make page and plot anew.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of scaling.csv, scaling.md and scaling.png.")] = HERE,
) -> None:
    """Time explanations while depth, resolution or batch grows."""
    out.mkdir(parents=True, exist_ok=True)
    table, console = Table(out / "scaling.csv", COLUMNS, KEY), Console()
    interrupted = False
    if not page_only:
        axes = checked(axis or AXES, AXES.__contains__, "axis")
        methods = checked(method or TIMED, METHODS.__contains__, "method")
        # The same case may lie on two axes.
        cases = dict.fromkeys(case for name in axes for value, case in AXES[name].cases.items()
                              if largest is None or value <= largest)  # fmt: skip
        settings = Settings(rounds=rounds, threads=threads, timeout=timeout, memory=memory, device=device)
        interrupted = sweep(list(cases), methods, settings, table, console, only_missing=only_missing)
    rows = list(table.rows.values())
    (out / "scaling.md").write_text(page(rows))
    console.print(f"written: {out / 'scaling.md'}")
    if draw(rows, out / "scaling.png"):
        console.print(f"written: {out / 'scaling.png'}")
    if interrupted:
        raise typer.Exit(130)


def page(rows: Iterable[Row]) -> str:
    """The rows as a page."""
    rows = list(rows)
    lines = [
        "# Scaling", "",
        "Time of one call as a multiple of autograd's (forward, and backward to the image) in the same round: median, "
        "in brackets the least and the largest; autograd's own is in seconds. Set-up: seconds of `fxlrp.compile` + of "
        "the first call. Random weights, noise; processes take turns. Made with `python -m benchmarks.scaling`.", "",
        "![Time by depth, resolution and batch](scaling.png)", "",
    ]  # fmt: skip
    for sheet in sheets(rows):
        lines += [f"## {sheet.name}", "", *_made(sheet.rows), ""]
        for axis in AXES.values():
            found = _by_value(sheet.rows, axis)
            if found:
                lines += [f"### {axis.title}", "", _table(axis, found), ""]
    failed = [f"- **{row['method']}**, {row['model']}, batch {row['batch']}, {row['size']} × {row['size']}, at "
              f"{row['stage']}: {verbatim(row['reason'])}" for row in rows if row["status"] != "ok"]  # fmt: skip
    return "\n".join([*lines, "## Failures", "", *(failed or ["None."])]) + "\n"


def _made(rows: Iterable[Row]) -> list[str]:
    columns = ("threads", "torch", "dtype", "rounds")
    dates: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["status"] == "ok":
            dates.setdefault(tuple(row[column] for column in columns), []).append(row["date"])
    return [
        f"- {threads} thread(s); torch {torch}, {dtype}, {rounds} rounds; rows from {min(found)} to {max(found)}"
        for (threads, torch, dtype, rounds), found in sorted(dates.items())
    ]


def _by_value(rows: Iterable[Row], axis: Axis) -> dict[int, dict[str, Row]]:
    """By the value on the axis, and by method."""
    at = {(case.model, case.batch, case.size): value for value, case in axis.cases.items()}
    found: dict[int, dict[str, Row]] = {}
    for row in rows:
        value = at.get((row["model"], int(row["batch"]), int(row["size"])))
        if value is not None:
            found.setdefault(value, {})[row["method"]] = row
    return dict(sorted(found.items()))


def _table(axis: Axis, found: dict[int, dict[str, Row]]) -> str:
    names = [name for name in METHODS if any(name in rows for rows in found.values())]
    ours = next((name for name in names if name.startswith("fxlrp")), None)
    columns = [axis.label, *names, *([f"set-up, {ours}"] if ours else [])]
    lines = []
    for value, rows in found.items():
        line = [str(value), *(_cell(rows.get(name)) for name in names)]
        lines.append([*line, _set_up(rows.get(ours))] if ours else line)
    return markdown(columns, lines)


def _cell(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return "" if row is None else "fails"
    if row["method"] == YARDSTICK:
        return f"{number(row, 'seconds'):.3g} s"
    return f"{number(row, 'ratio'):.2f} ({number(row, 'ratio_min'):.2f}–{number(row, 'ratio_max'):.2f})"


def _set_up(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return ""
    return f"{number(row, 'setup_s'):.2f} + {number(row, 'first_s'):.2f}"


def draw(rows: Iterable[Row], path: Path) -> bool:
    """A panel an axis, a line of them a device; whether there was anything to draw."""
    lines = [(sheet.name, {name: _by_value(sheet.rows, axis) for name, axis in AXES.items()}) for sheet in sheets(rows)]
    shown = {name: axis for name, axis in AXES.items() if any(found[name] for _, found in lines)}
    if not shown:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(lines), len(shown), figsize=(1 + 4 * len(shown), 1 + 3.4 * len(lines)), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for line, (device, found) in zip(axes, lines, strict=True):
        for ax, (name, axis) in zip(line, shown.items(), strict=True):
            _panel(ax, axis, found[name])
        line[0].set_ylabel(f"time / autograd, {device}")
    handles = {name: handle for ax in axes.flat for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _panel(ax: Any, axis: Axis, found: dict[int, dict[str, Row]]) -> None:
    for (name, colour), marker in zip(COLOURS.items(), "osDDv^<>P", strict=True):
        points = {value: number(rows[name], "ratio") for value, rows in found.items()
                  if name in rows and rows[name]["status"] == "ok"}  # fmt: skip
        if points:
            ax.plot(list(points), list(points.values()), marker=marker, color=colour, label=name)
    ax.axhline(1, color="black", linewidth=1, linestyle="--", label="autograd")
    ax.set_xscale("log", base=2)
    ratio_axis(ax)
    ax.set_xticks(list(axis.cases), [str(value) for value in axis.cases])
    ax.minorticks_off()
    ax.set_xlabel(axis.label)
    ax.set_title(axis.title, fontsize=9)


if __name__ == "__main__":
    typer.run(main)
