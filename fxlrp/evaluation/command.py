"""The commands ``fxlrp evaluate`` and ``fxlrp report``: their options, and what they do.

It does without torch until a command runs, so that ``fxlrp --help`` answers at once.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fxlrp.common.extras import require

Configuration = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The configuration, a TOML file.", show_default=False)
]
Results = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The folder of results; else run.out of the configuration.")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")]
WithReport = Annotated[bool, typer.Option(help="Write the report at the end.")]
ReportFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The folder of the report; else beside the results.")
]
WithGallery = Annotated[bool, typer.Option(help="Show the best and the worst maps.")]


def evaluate(
    config: Configuration, out: Results = None, retry_failed: RetryFailed = False, report: WithReport = True
) -> None:
    """Evaluate explanation methods on a data set. Run again, it goes on where it was stopped.

    Several processes: torchrun --nproc-per-node N -m fxlrp evaluate CONFIG
    """
    from rich.console import Console

    from fxlrp import evaluation
    from fxlrp.evaluation.workers import rank

    checked = _read(config, out)
    write_report = evaluation.write_report if report else None  # a package that it lacks is missed now, not at the end
    if checked.run.maps:
        require("h5py", "evaluate")

    what = checked.what
    console = Console(highlight=False)
    watched = console if console.is_terminal else Console(stderr=True)
    with _bar(watched, what, enabled=rank() == 0) as bar:
        task = bar.add_task("Evaluating", total=None, failures="")

        def show(progress: evaluation.Progress) -> None:
            failures = f"{progress.failures} with failures" if progress.failures else ""
            bar.update(task, total=progress.total, completed=progress.done, failures=failures)

        finished = evaluation.evaluate(checked, progress=show, retry_failed=retry_failed)
    if finished is None:
        return
    console.print(f"{finished.images} {what}, {finished.before} of them from an earlier run: {checked.out}")
    if finished.failures:
        console.print(f"something failed on {finished.failures} {what}: the report says what", style="yellow")
    for name, reason in finished.unavailable.items():
        console.print(f"{name} cannot explain this model: {reason}", style="yellow", soft_wrap=True)
    if write_report is not None:
        console.print(f"report: {write_report(checked)}", soft_wrap=True)


def report(
    config: Configuration, out: Results = None, to: ReportFolder = None, gallery: WithGallery = True
) -> None:
    """Write the report of an evaluation from its results."""
    from rich.console import Console

    from fxlrp import evaluation

    page = evaluation.write_report(_read(config, out), to, gallery=gallery)
    Console(highlight=False).print(f"report: {page}", soft_wrap=True)


def _read(path: Path, out: Path | None) -> Any:
    """The configuration, with another folder of results where one is given."""
    from fxlrp import evaluation

    config: Any = evaluation.read_config(path)
    if out is None:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, out=str(out.absolute())))


def _bar(console: Any, what: str, *, enabled: bool) -> Any:
    """A progress bar that tells images, or passages, per second, or seconds for each."""
    from rich import progress

    class Rate(progress.ProgressColumn):
        def render(self, task: Any) -> Any:
            speed = task.finished_speed or task.speed
            if not speed:
                return ""
            return f"{speed:.1f} {what}/s" if speed >= 1 else f"{1 / speed:.1f} s/{what[:-1]}"

    return progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(), Rate(),
        progress.TimeRemainingColumn(), progress.TextColumn("[yellow]{task.fields[failures]}"),
        console=console, transient=True, disable=not enabled,
    )  # fmt: skip
