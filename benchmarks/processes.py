"""Each model in a process of its own: what crashes, hangs or runs out of memory is a row, and the sweep goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        spec: the model, ZOO:NAME.
        arguments: options of ``benchmarks.measure``.
        identity: the columns that are known beforehand.
    """

    spec: str
    arguments: tuple[str, ...]
    identity: dict[str, str]


class Worker:
    """A running job."""

    def __init__(self, job: Job, folder: Path, timeout: float, environment: dict[str, str]) -> None:
        self.job = job
        self.timeout = timeout
        self.out = folder / "row.json"
        self.log = folder / "log.txt"
        command = [sys.executable, "-m", "benchmarks.measure", job.spec, str(self.out), *job.arguments]
        with self.log.open("wb") as log:
            # A session of its own, so that whatever it starts can be ended with it.
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.began = time.monotonic()

    def result(self) -> dict[str, Any] | None:
        """The row, or ``None`` while it runs."""
        code = self.process.poll()
        if code is None:
            if time.monotonic() - self.began < self.timeout:
                return None
            self.end()
            return self._row() | {"status": "failed", "reason": f"took longer than {self.timeout:.0f} s"}
        row = self._row()
        if code:
            row |= {"status": "failed", "reason": how_it_ended(code, self.log)}
        return row

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _row(self) -> dict[str, Any]:
        found = json.loads(self.out.read_text()) if self.out.exists() else {"stage": "start"}
        return {**found, **self.job.identity}


def how_it_ended(code: int, log: Path) -> str:
    """Why a process is no more, from its exit status and the last line of what it wrote."""
    lines = log.read_text(errors="replace").strip().splitlines()
    last = f": {lines[-1][:300]}" if lines else ""
    if code < 0:
        memory = ", probably out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}{last}"
    return f"ended with status {code}{last}"


def measured(
    jobs: Sequence[Job], *, at_once: int, timeout: float, environment: dict[str, str], started: Any
) -> Iterator[dict[str, Any]]:
    """The rows of ``jobs``, as they come.

    Args:
        jobs: what to measure.
        at_once: how many processes.
        timeout: seconds for each.
        environment: of the processes.
        started: called with the jobs that run, when these change.
    """
    waiting = list(reversed(jobs))
    running: list[Worker] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            while waiting or running:
                if waiting and len(running) < at_once:
                    folder = Path(tempfile.mkdtemp(dir=scratch))
                    running.append(Worker(waiting.pop(), folder, timeout, environment))
                    started([worker.job for worker in running])
                    continue
                time.sleep(0.05)
                for worker in list(running):
                    row = worker.result()
                    if row is not None:
                        running.remove(worker)
                        yield row
        finally:
            for worker in running:
                worker.end()
