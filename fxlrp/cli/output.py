"""How ``fxlrp explain`` tells what it found: on the terminal, as JSON, as numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxlrp.cli.findings import Finding, as_json
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.work import Answer, Work
from fxlrp.results.explanation_data import joined
from fxlrp.results.files import json_writer, plain, write


def about(work: Work) -> dict[str, Any]:
    """What findings were made by."""
    options, loaded = work.options, work.loaded
    return {
        "model": options.model, "weights": None if options.weights is None else str(options.weights),
        "preset": work.explainer.preset_name,
        "preprocessing": None if loaded.input_format is None else str(loaded.input_format),
        "preprocessing_from": loaded.preprocessing_from,
    }  # fmt: skip


def write_json(options: ExplainOptions, findings: Sequence[Finding], more: dict[str, Any]) -> None:
    """Write what was found as JSON, if that is asked for; ``more``: what else it says."""
    if options.json is None:
        return
    content = as_json(findings, more)
    if to_stdout(options):
        json.dump(plain(content), sys.stdout, ensure_ascii=False, allow_nan=False, indent=1)
        print()
    else:
        write(options.json, {".json": json_writer(content)})


def save_numbers(path: Path, answers: Sequence[Answer]) -> None:
    """Write the explanations of all files as one, with the files' names.

    Raises:
        InputError: their shapes differ, or the file cannot be written.
    """
    each = [joined(answer.numbers, axis=1) if len(answer.numbers) > 1 else answer.numbers[0] for answer in answers]
    joined(each).save(path, file=[answer.finding.file for answer in answers])


@contextmanager
def printing(count: int, options: ExplainOptions) -> Iterator[tuple[Callable[[Any], None], Callable[[], None]]]:
    """What prints a text, and what moves the bar on; where JSON goes to stdout, texts go to stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(highlight=False, stderr=to_stdout(options))
    # On a terminal one console must print both, because it moves the bar out of the way. If stdout is a file,
    # the bar is on stderr.
    bar_console = console if console.is_terminal else Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=bar_console, transient=True, disable=count < 2 or not bar_console.is_terminal, redirect_stdout=False,
    )  # fmt: skip
    with progress:
        task = progress.add_task("Explaining", total=count)
        yield (lambda text: console.print(text, soft_wrap=True)), (lambda: progress.advance(task))


def to_stdout(options: ExplainOptions) -> bool:
    """Whether the standard output is for JSON alone."""
    return str(options.json) == "-"
