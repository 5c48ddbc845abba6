"""The processes of ``fxlrp explain --workers``: files are shared among them, and this one tells what happens there."""

from __future__ import annotations

import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

import torch

from fxlrp.cli.options import ExplainOptions
from fxlrp.common.errors import FxlrpError, InputError
from fxlrp.loading.models import ModelWarning

Explain = Callable[[ExplainOptions, Sequence[Any], Callable[[], None]], None]
"""Explains a share of the files, and calls a function after each."""


def in_processes(
    explain: Explain, options: ExplainOptions, records: Sequence[Any], advance: Callable[[], None]
) -> None:
    """Share files among as many processes of this machine as ``--workers`` says.

    Args:
        explain: is called in each of them, with its share.
        options: of the command.
        records: the files.
        advance: is called here for each that is done.

    Raises:
        InputError: one of them failed.
    """
    context, count = get_context("spawn"), min(options.workers, len(records))
    said = context.SimpleQueue()  # what happened, "done", "warning" or "failed", and a text
    threads = max(1, torch.get_num_threads() // count)
    processes = [context.Process(target=_process, args=(explain, options, records[rank::count], threads, said))
                 for rank in range(count)]  # fmt: skip
    failures: list[str] = []

    def listen() -> None:
        while not said.empty():
            happened, text = said.get()
            if happened == "done":
                advance()
            elif happened == "warning":  # all processes say the same of the same model; Python tells it once
                warnings.warn(text, ModelWarning, stacklevel=2)
            else:
                failures.append(text)

    try:
        with _ctrl_c_left_to_this_process():
            for process in processes:
                process.start()
        running = list(processes)
        while running:
            wait([process.sentinel for process in running], timeout=0.2)
            listen()
            running = [process for process in running if process.is_alive()]
        listen()
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
    if any(process.exitcode for process in processes):
        ends = ", ".join(str(process.exitcode) for process in processes if process.exitcode)
        reason = [*failures, f"ended with status {ends} (-9: killed, probably out of memory)"][0]
        raise InputError(f"a worker failed: {reason}")


@contextmanager
def _ctrl_c_left_to_this_process() -> Iterator[None]:
    """Processes that are started within do not hear Ctrl-C, which a terminal tells to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _process(explain: Explain, options: ExplainOptions, records: Sequence[Any], threads: int, said: Any) -> None:
    def warned(message: Warning | str, *_: Any, **__: Any) -> None:
        said.put(("warning", str(message)))

    signal.signal(signal.SIGTERM, _leave)
    warnings.showwarning = warned
    torch.set_num_threads(threads)
    try:
        explain(options, records, lambda: said.put(("done", "")))
    except FxlrpError as error:
        said.put(("failed", str(error)))
        raise SystemExit(1) from None
    except Exception:
        said.put(("failed", traceback.format_exc()))
        raise SystemExit(1) from None


def _leave(*_: Any) -> None:
    # As an exception it leaves nothing half written.
    raise SystemExit(1)
