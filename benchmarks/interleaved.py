"""Methods timed side by side: a process each, one call each in turn, and ratios of calls of the same round.

What else happens on a machine, and how warm it is, changes over minutes. Calls that follow one another see the same
machine, so the ratio of each to the yardstick's call of its round is taken, and the median of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone

import torch

from benchmarks.origin import busy_cores, commit, processor
from benchmarks.speed_process import Case, Failure, Row, Settings, Worker

COLUMNS = (
    "device", "device_name", "model", "size", "batch", "method", "status", "stage", "reason", "ratio", "ratio_min",
    "ratio_max", "seconds", "rounds", "times", "peak_mb", "call_mb", "held_mb", "setup_s", "first_s", "threads",
    "dtype", "memory_format", "torch", "version", "yardstick", "run", "group", "busy", "date",
)  # fmt: skip
KEY = ("device", "model", "size", "batch", "method")

_GIB = 2**30


def measure(
    case: Case, methods: Sequence[str], settings: Settings, tell: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """A row for the yardstick and for each method, measured or failed.

    All that the memory has room for at once are one group, whose calls take turns; the others follow, with the
    yardstick anew. ``tell`` is called with what is being done.
    """
    now = datetime.now(timezone.utc)
    common: Row = {
        **asdict(case), "device": settings.device, "device_name": processor(), "threads": settings.threads,
        "dtype": "float32", "busy": busy_cores(), "torch": torch.__version__, "yardstick": settings.yardstick,
        "run": f"{case.model} {case.size} {case.batch} {now:%Y-%m-%dT%H:%M:%S.%f}", "date": f"{now:%Y-%m-%d %H:%M UTC}",
    }  # fmt: skip
    waiting = [name for name in dict.fromkeys(methods) if name != settings.yardstick]
    rows: dict[str, Row] = {}
    group = 0
    while waiting or not group:
        group += 1
        for name, row in _Group(case, settings, tell).measured(waiting).items():
            rows.setdefault(name, {**common, "group": group, "method": name, **row})
    state = commit()
    # What failed early could not tell on which device.
    device = next((row["device_name"] for row in rows.values() if row["status"] == "ok"), processor())
    for row in rows.values():
        row["device_name"] = device
        if str(row.get("version", "")).startswith("fxlrp"):
            row["version"] += f", {state}"
    return [rows[name] for name in dict.fromkeys([settings.yardstick, *methods])]


class _Group:
    """Workers that live at the same time, the yardstick first."""

    def __init__(self, case: Case, settings: Settings, tell: Callable[[str], None]) -> None:
        self.case, self.settings, self.tell = case, settings, tell
        self.workers: list[Worker] = []
        self.failed: dict[str, Row] = {}

    def measured(self, waiting: list[str]) -> dict[str, Row]:
        """The rows of as many as there is room for, which are taken out of ``waiting``."""
        with ExitStack() as stack:
            try:
                self._admit(self.settings.yardstick, stack)
                while waiting and self._admit(waiting[0], stack):
                    waiting.pop(0)
                yard = self.workers[0]
                self._rounds()
            except _YardstickError as error:
                names = [*(worker.method for worker in self.workers), *waiting]
                waiting.clear()
                reason = f"{self.settings.yardstick}, the yardstick, failed at {error.stage}: {error.reason}"
                lost = {name: _failed("yardstick", reason) for name in names}
                own = {self.settings.yardstick: _failed(error.stage, error.reason)}
                return lost | self.failed | own
        return {worker.method: _row(worker, yard) for worker in self.workers} | self.failed

    def _admit(self, name: str, stack: ExitStack) -> bool:
        """Start a worker and bring it to its first call that counts; ``False``: it must wait for the next group."""
        room = self._room()
        crowded = len(self.workers) > 1
        if crowded and room is not None and room * _GIB < max(worker.most for worker in self.workers):
            return False
        self.tell(f"{name}: set-up")
        worker = Worker(name, self.case, self.settings)
        own = ExitStack()
        own.enter_context(worker)
        try:
            worker.prepare(room)
            if crowded and not self._fits(worker):
                own.close()
                return False
        except Failure as failure:
            own.close()
            if not self.workers:
                raise _YardstickError(failure.stage, failure.reason) from failure
            if crowded and failure.of_memory:
                return False
            self.failed[name] = _failed(failure.stage, failure.reason, worker)
            return True
        except BaseException:
            own.close()
            raise
        stack.push(own)
        self.workers.append(worker)
        return True

    def _rounds(self) -> None:
        for index in range(self.settings.rounds):
            self.tell(f"round {index + 1} of {self.settings.rounds}")
            # There and back, so that what drifts evenly has no side.
            for worker in list(self.workers if index % 2 == 0 else reversed(self.workers)):
                self._step(worker, worker.count)
        self.tell("memory")
        for worker in list(self.workers):
            self._step(worker, worker.weigh)

    def _step(self, worker: Worker, step: Callable[[], None]) -> None:
        try:
            step()
        except Failure as failure:
            if worker is self.workers[0]:
                raise _YardstickError(failure.stage, failure.reason) from failure
            self.workers.remove(worker)
            worker.__exit__()
            self.failed[worker.method] = _failed(failure.stage, failure.reason, worker)

    def _room(self) -> float | None:
        """GiB that are left for one more; ``None``: not bounded."""
        if self.settings.device != "cpu":
            return None
        return self.settings.memory - sum(worker.holds for worker in self.workers) / _GIB

    def _fits(self, new: Worker) -> bool:
        """Whether all can be held at once, and any one of them be at its peak."""
        if self.settings.device != "cpu":
            return True
        crew = [*self.workers, new]
        held = sum(worker.holds for worker in crew)
        return held + max(worker.most - worker.holds for worker in crew) <= self.settings.memory * _GIB


class _YardstickError(Failure):
    """Without it there are no ratios."""


def _failed(stage: str, reason: str, worker: Worker | None = None) -> Row:
    return {**(_facts(worker) if worker else {}), "status": "failed", "stage": stage, "reason": reason}


def _row(worker: Worker, yardstick: Worker) -> Row:
    ratios = [own / other for own, other in zip(worker.times, yardstick.times, strict=True)]
    return {
        **_facts(worker),
        "status": "ok",
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "seconds": statistics.median(worker.times),
        "rounds": len(ratios),
        "times": " ".join(f"{seconds:.4g}" for seconds in worker.times),
    }


def _facts(worker: Worker) -> Row:
    """What it told; the name of a device only where it is no CPU."""
    return {name: value for name, value in worker.facts.items() if value != ""}
