"""What is going on where reading a model takes long: one line on a terminal, or a record of the logger ``fxlrp``."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

LOG = logging.getLogger("fxlrp")

PATIENCE = 2.0
"""Seconds after which something is told."""
_REFRESH = 0.5


class _Watch:
    """Tells of one piece of work.

    Args:
        subject: what is being done, for the line.
        terminal: where the line is written; ``None``: it is logged.
    """

    def __init__(self, subject: str, terminal: TextIO | None) -> None:
        self.subject = subject
        self.stage = ""
        self._terminal = terminal
        self._began = time.perf_counter()
        self._done = threading.Event()
        self._told = False
        self._teller = threading.Thread(target=self._tell, name="fxlrp progress", daemon=True)

    def start(self) -> None:
        self._teller.start()

    def end(self) -> None:
        """Stop telling; on a terminal the line ends with the time that it took."""
        self._done.set()
        self._teller.join()
        if self._told and self._terminal is not None:
            self._write(f"{self._seconds():.1f} s in all", "\n")

    def _tell(self) -> None:
        wait = PATIENCE
        while not self._done.wait(wait):
            if self._terminal is None:
                LOG.info("%s: %s, %.1f s so far", self.subject, self.stage, self._seconds())
                return
            self._write(f"{self.stage}, {self._seconds():.0f} s so far", "")
            self._told, wait = True, _REFRESH

    def _write(self, text: str, end: str) -> None:
        assert self._terminal is not None
        try:
            self._terminal.write(f"\r\033[K{self.subject}: {text}{end}")
            self._terminal.flush()
        except (OSError, ValueError):  # nobody listens any more
            self._done.set()

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


_CURRENT: ContextVar[_Watch | None] = ContextVar("fxlrp_progress", default=None)


@contextmanager
def watched(subject: str) -> Iterator[None]:
    """Within, one line tells what is going on once it has taken :data:`PATIENCE`.

    It is written to stderr where that is a terminal, and else logged where the level of the logger ``fxlrp`` is INFO
    or lower. Within another one nothing more is told.

    Args:
        subject: what is being done.
    """
    terminal = sys.stderr if _is_terminal(sys.stderr) else None
    if _CURRENT.get() is not None or (terminal is None and not LOG.isEnabledFor(logging.INFO)):
        yield
        return
    watch = _Watch(subject, terminal)
    token = _CURRENT.set(watch)
    watch.start()
    try:
        yield
    finally:
        _CURRENT.reset(token)
        watch.end()


def stage(name: str) -> None:
    """What is being done now, for the line."""
    watch = _CURRENT.get()
    if watch is not None:
        watch.stage = name


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # it is closed, or only writes
        return False
