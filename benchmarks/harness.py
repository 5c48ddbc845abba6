"""Methods timed side by side: one process each, one call each in turn, and ratios of calls of the same round.

What else happens on a machine, and how warm it is, changes over minutes. Calls that follow one another see the same
machine, so the ratio of each to the yardstick's call of its round is taken, and the median of these. The placebo is the
yardstick in a second process: how far its ratio lies from 1 is what nothing explains.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import nan
from statistics import median
from typing import Any

import torch

from benchmarks.methods import Case
from benchmarks.provenance import busy_cores, now, processor
from benchmarks.workers import Failure, Row, Worker

PLACEBO = "placebo"
_GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """How methods of a module's ``METHODS``, the ``registry``, are timed.

    Beside the first call, ``warmups`` do not count and ``rounds`` do. ``timeout``: seconds for one step of a worker;
    ``memory``: GiB for all processes together; ``device``: ``"cpu"`` or ``"cuda"``.
    """

    registry: str
    rounds: int = 15
    warmups: int = 2
    threads: int = 2
    timeout: float = 900
    memory: float = 16
    device: str = "cpu"


@dataclass(frozen=True)
class Entry:
    """A method by its name in the registry, and the checkout of fxlrp that it runs, if that is another."""

    method: str
    checkout: str = ""


def measure(
    case: Case, entries: Mapping[str, Entry], settings: Settings, tell: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """A row for each entry and for the placebo, measured or failed; and a row for each part that a method tells.

    All that the memory has room for at once are one group, whose calls take turns; the others follow, with the
    yardstick anew. ``entries`` are by the name in the row, the yardstick first; ``tell`` is called with what is done.
    """
    yardstick, *others = entries
    entries = {yardstick: entries[yardstick], PLACEBO: entries[yardstick], **entries}
    common = {
        **asdict(case), "device": settings.device, "threads": settings.threads, "dtype": "float32", "date": now(),
        "busy": busy_cores(), "torch": torch.__version__, "yardstick": yardstick,
        "run": f"{case.model} {case.size} {case.batch} {datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}",
    }  # fmt: skip
    waiting, rows, group = [PLACEBO, *others], {}, 0
    while waiting:
        group += 1
        for name, measured in _Group(case, entries, settings, tell).measured(waiting).items():
            rows.setdefault(name, [{**common, "group": group, "method": name, **row} for row in measured])
    # What failed early could not tell on which device.
    device = next((row["device_name"] for some in rows.values() for row in some if "device_name" in row), processor())
    return [{**row, "device_name": device} for name in entries for row in rows[name]]


class TimedMethod(Worker):
    """One method in a process of its own.

    ``facts``: columns of its row, as they become known; ``calls``: the replies to the calls that count; ``holds`` and
    ``most``: bytes that it holds between calls, and held at its peak, but for what processes share.
    """

    def __init__(self, name: str, entry: Entry, case: Case, settings: Settings, room: float | None) -> None:
        self.name, self.facts, self.calls, self.holds, self.most = name, {}, [], 0, 0
        job = {"case": asdict(case), "method": entry.method, "registry": settings.registry, "device": settings.device}
        super().__init__("benchmarks.timing_worker", job, settings.timeout, settings.threads, room, entry.checkout)

    def prepare(self, warmups: int) -> None:
        """Do all up to the first call that counts."""
        self.facts |= self.ask("model", do="make")
        self.facts["setup_s"] = self.ask("set-up", do="set_up")["seconds"]
        self.facts["first_s"] = self.ask("first call", do="measure")["seconds"]
        for _ in range(warmups):
            self.ask("warm-up", do="measure")
        sizes = self.ask("memory", do="holds")
        self.holds, self.most = sizes["holds"], sizes["most"]

    def count(self) -> None:
        """One call that counts."""
        self.calls.append(self.ask("round", do="measure"))

    def weigh(self) -> None:
        """One more call, for its memory."""
        self.facts |= self.ask("memory", do="weigh")

    def rows(self, yardstick: "TimedMethod") -> list[Row]:
        """The row of the whole call, and one for each part, beside the yardstick's same part or its whole call."""
        both = list(zip(self.calls, yardstick.calls, strict=True))
        processor = median(one["processor"] / (other["processor"] or nan) for one, other in both)
        times = " ".join(f"{call['seconds']:.4g}" for call in self.calls)
        whole = {**self.facts, "processor_ratio": processor, "times": times}
        rows = []
        for part in dict.fromkeys(["", *(part for call in self.calls for part in call["parts"])]):
            times = [call["parts"].get(part, 0.0) if part else call["seconds"] for call in self.calls]
            others = [other["parts"].get(part, other["seconds"]) for _, other in both]
            ratios = [time / other for time, other in zip(times, others, strict=True)]
            rows.append({"part": part, "status": "ok", "rounds": len(times), "ratio": median(ratios), "ratio_min":
                         min(ratios), "ratio_max": max(ratios), "seconds": median(times), **({} if part else whole)})
        return rows


class _Group:
    """Methods whose processes live at the same time, the yardstick first."""

    def __init__(self, *of: Any) -> None:
        self.case, self.entries, self.settings, self.tell = of
        self.members: list[TimedMethod] = []
        self.failed: dict[str, list[Row]] = {}

    def measured(self, waiting: list[str]) -> dict[str, list[Row]]:
        """The rows of as many as there is room for, which are taken out of ``waiting``."""
        names, yardstick = waiting[:], next(iter(self.entries))
        with ExitStack() as stack:
            self._admit(yardstick, stack)
            while self.members and waiting and self._admit(waiting[0], stack):
                waiting.pop(0)
            for number in range(self.settings.rounds):
                self.tell(f"round {number + 1} of {self.settings.rounds}")
                # There and back, so that what drifts evenly has no side.
                for member in self.members[:] if number % 2 == 0 else self.members[::-1]:
                    self._step(member, member.count)
            self.tell("memory")
            for member in self.members[:]:
                self._step(member, member.weigh)
        if yardstick not in self.failed:
            return {member.name: member.rows(self.members[0]) for member in self.members} | self.failed
        waiting.clear()
        (failure,) = self.failed[yardstick]
        reason = f"{yardstick}, the yardstick, failed at {failure['stage']}: {failure['reason']}"
        return {name: [{"status": "failed", "stage": "yardstick", "reason": reason}] for name in names} | self.failed

    def _admit(self, name: str, stack: ExitStack) -> bool:
        """Start a method and bring it to its first call that counts; ``False``: it must wait for the next group."""
        memory = self.settings.memory if self.settings.device == "cpu" else float("inf")
        room = memory - sum(member.holds for member in self.members) / _GIB
        crowded = len(self.members) > 1
        if crowded and room * _GIB < max(member.most for member in self.members):
            return False
        self.tell(f"{name}: set-up")
        method = TimedMethod(name, self.entries[name], self.case, self.settings, None if room == float("inf") else room)
        stack.callback(method.close)
        self.members.append(method)
        if not self._step(method, lambda: method.prepare(self.settings.warmups), crowded):
            return name in self.failed
        # All must be held at once, and any one of them at its peak.
        total = sum(each.holds for each in self.members) + max(each.most - each.holds for each in self.members)
        if crowded and total > memory * _GIB:
            method.close()
            self.members.remove(method)
            return False
        return True

    def _step(self, method: TimedMethod, step: Callable[[], None], crowded: bool = False) -> bool:
        """Whether a step was done; what failed is a row, unless it lacked memory because it was not alone."""
        if method not in self.members:
            return False
        try:
            step()
            return True
        except Failure as failure:
            method.close()
            if not (crowded and failure.of_memory):
                told = {"status": "failed", "stage": failure.stage, "reason": failure.reason}
                self.failed[method.name] = [{**method.facts, **told}]
            # Without the yardstick there are no ratios.
            self.members = [] if method is self.members[0] else [each for each in self.members if each is not method]
            return False
