"""What ``fxlrp evaluate`` and ``fxlrp report`` do, once the command line has been read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fxlrp.common.extras import require
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.reading import read_config
from fxlrp.evaluation.report import write_report
from fxlrp.evaluation.runner import Progress, evaluate
from fxlrp.evaluation.workers import rank


def run_evaluation(path: Path, out: Path | None, *, retry_failed: bool = False, report: bool = True) -> None:
    """Evaluate, with a progress bar, and write the report.

    Raises:
        FxlrpError: whatever can be wrong.
    """
    config = _config(path, out)
    for package in ("pyarrow", "matplotlib", *(["h5py"] if config.run.maps else [])):
        require(package, "evaluate")
    from rich.console import Console

    console = Console(highlight=False)
    watched = console if console.is_terminal else Console(stderr=True)
    with _bar(watched, enabled=rank() == 0) as bar:
        task = bar.add_task("Evaluating", total=None, failures="")

        def show(progress: Progress) -> None:
            failures = f"{progress.failures} with failures" if progress.failures else ""
            bar.update(task, total=progress.total, completed=progress.done, failures=failures)

        finished = evaluate(config, progress=show, retry_failed=retry_failed)
    if finished is None:
        return
    console.print(f"{finished.images} images, {finished.before} of them from an earlier run: {config.out}")
    if finished.failures:
        console.print(f"of {finished.failures} images something failed; the report says what", style="yellow")
    for name, reason in finished.unavailable.items():
        console.print(f"{name} cannot explain this model: {reason}", style="yellow", soft_wrap=True)
    if report:
        console.print(f"report: {write_report(config)}", soft_wrap=True)


def run_report(path: Path, out: Path | None, to: Path | None, *, gallery: bool = True) -> None:
    """Write a report from results.

    Raises:
        FxlrpError: there are no results, or they cannot be read.
    """
    from rich.console import Console

    page = write_report(_config(path, out), to, gallery=gallery)
    Console(highlight=False).print(f"report: {page}", soft_wrap=True)


def _config(path: Path, out: Path | None) -> Config:
    config = read_config(path)
    return config if out is None else dataclasses.replace(
        config, run=dataclasses.replace(config.run, out=str(out.absolute()))
    )  # fmt: skip


def _bar(console: Any, *, enabled: bool) -> Any:
    from rich import progress

    class Rate(progress.ProgressColumn):
        """Images a second, or seconds an image."""

        def render(self, task: Any) -> Any:
            speed = task.finished_speed or task.speed
            if not speed:
                return ""
            return f"{speed:.1f} images/s" if speed >= 1 else f"{1 / speed:.1f} s/image"

    return progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(), Rate(),
        progress.TimeRemainingColumn(), progress.TextColumn("[yellow]{task.fields[failures]}"),
        console=console, transient=True, disable=not enabled,
    )  # fmt: skip
