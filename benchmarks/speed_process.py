"""The controller's side of a worker: a process that runs one method on one model, a step at a time."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, how_it_ended
from benchmarks.speed_methods import YARDSTICK, Method

Row = dict[str, Any]
_OF_MEMORY = ("memory", "bad_alloc", "SIGKILL")


@dataclass(frozen=True)
class Case:
    """What is explained: noise of ``size`` × ``size``, in batches, to a model of ``speed_models``."""

    model: str
    batch: int
    size: int


@dataclass(frozen=True)
class Settings:
    """How it is timed.

    Attributes:
        registry: the module whose ``METHODS`` the names are of.
        yardstick: the method that others are divided by.
        rounds, warmups: calls that count, and calls before them that do not, beside the first.
        threads: of torch, in each process.
        timeout: seconds for one step of a worker.
        memory: GiB for all processes together.
        device: ``"cpu"`` or ``"cuda"``.
    """

    registry: str = "benchmarks.speed_methods"
    yardstick: str = YARDSTICK
    rounds: int = 7
    warmups: int = 2
    threads: int = 2
    timeout: float = 900
    memory: float = 16
    device: str = "cpu"

    @property
    def methods(self) -> dict[str, Method]:
        """Those of the registry."""
        methods: dict[str, Method] = importlib.import_module(self.registry).METHODS
        return methods


class Failure(Exception):
    """A worker failed: at which stage, and why."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason

    @property
    def of_memory(self) -> bool:
        return any(word in self.reason for word in _OF_MEMORY)


@dataclass
class Worker:
    """A process that runs one method when asked; it ends with the block that it is entered by.

    Attributes:
        facts: columns of its row, as they become known.
        times: seconds of the calls that count.
        holds, most: bytes that it holds between calls, and held at its peak, but for what processes share.
    """

    method: str
    case: Case
    settings: Settings
    facts: Row = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    holds: int = 0
    most: int = 0
    ended: bool = False

    def __enter__(self) -> Worker:
        self._scratch = tempfile.TemporaryDirectory()
        folder, settings = Path(self._scratch.name), self.settings
        self.log = folder / "log.txt"
        job = {**asdict(self.case), "registry": settings.registry, "method": self.method, "device": settings.device,
               "threads": settings.threads}  # fmt: skip
        threads = str(settings.threads)
        # Caches of its own: what an earlier run compiled must be compiled again.
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.speed_worker", json.dumps(job)], cwd=ROOT,
                env=os.environ | caches | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        if self.ended:
            return
        self.ended = True
        # With whatever it started, such as compilers.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._scratch.cleanup()

    def prepare(self, room: float | None) -> None:
        """All up to the first call that counts, within ``room`` GiB."""
        self.facts |= self._ask("model", do="make", limit=room)
        self.facts["setup_s"] = self._ask("set-up", do="set_up")["seconds"]
        self.facts["first_s"] = self._seconds("first call")
        for _ in range(self.settings.warmups):
            self._seconds("warm-up")
        found = self._ask("memory", do="holds")
        self.holds, self.most = found["holds"], found["most"]

    def count(self) -> None:
        """One call that counts."""
        self.times.append(self._seconds("round"))

    def weigh(self) -> None:
        """One more call, for its memory."""
        self.facts |= self._ask("memory", do="weigh")

    def _seconds(self, stage: str) -> float:
        seconds: float = self._ask(stage, do="measure")["seconds"]
        return seconds

    def _ask(self, stage: str, **request: Any) -> Row:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        reply: Row = json.loads(self._line(stage))
        if "error" in reply:
            raise Failure(stage, reply["error"])
        return reply

    def _line(self, stage: str) -> bytes:
        assert self.process.stdout is not None
        descriptor, limit, found = self.process.stdout.fileno(), self.settings.timeout, b""
        until = time.monotonic() + limit
        while not found.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise Failure(stage, f"took longer than {limit:.0f} s")
            part = os.read(descriptor, 65536)
            if not part:
                raise Failure(stage, how_it_ended(self.process.wait(), self.log))
            found += part
        return found
