"""Methods timed side by side: one process each, one call each in turn, and ratios of calls of the same round.

What else happens on a machine, and how warm it is, changes over minutes. Calls that follow one another see the same
machine, so the ratio of each to the yardstick's call of its round is taken, and the median of these. The placebo is the
yardstick in a second process: how far its ratio lies from 1 is what nothing explains.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from statistics import median

import torch

from benchmarks.methods import Case
from benchmarks.provenance import busy_cores, now, processor
from benchmarks.workers import Failure, Row, Worker

PLACEBO = "placebo"
_GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """How methods are timed.

    Attributes:
        registry: the module whose ``METHODS`` has them.
        rounds, warmups: calls that count, and calls before them that do not, beside the first.
        threads: of torch, in each process.
        timeout: seconds for one step of a worker.
        memory: GiB for all processes together.
        device: ``"cpu"`` or ``"cuda"``.
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
    yardstick anew.

    Args:
        case: what to run or explain.
        entries: by the name in the row, the yardstick first.
        settings: how.
        tell: called with what is being done.
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


class TimedMethod:
    """One method in a process of its own.

    Attributes:
        facts: columns of its row, as they become known.
        calls: the replies to the calls that count.
        holds, most: bytes that it holds between calls, and held at its peak, but for what processes share.
    """

    def __init__(self, name: str, entry: Entry, case: Case, settings: Settings, room: float | None) -> None:
        self.name, self.facts, self.calls, self.holds, self.most = name, {}, [], 0, 0
        job = {"case": asdict(case), "method": entry.method, "registry": settings.registry, "device": settings.device}
        options = (settings.timeout, settings.threads, room, entry.checkout)
        self.worker = Worker("benchmarks.timing_worker", job, *options)
        self.close = self.worker.close

    def prepare(self, warmups: int) -> None:
        """Do all up to the first call that counts."""
        self.facts |= self.worker.ask("model", do="make")
        self.facts["setup_s"] = self.worker.ask("set-up", do="set_up")["seconds"]
        self.facts["first_s"] = self.worker.ask("first call", do="measure")["seconds"]
        for _ in range(warmups):
            self.worker.ask("warm-up", do="measure")
        sizes = self.worker.ask("memory", do="holds")
        self.holds, self.most = sizes["holds"], sizes["most"]

    def count(self) -> None:
        """One call that counts."""
        self.calls.append(self.worker.ask("round", do="measure"))

    def weigh(self) -> None:
        """One more call, for its memory."""
        self.facts |= self.worker.ask("memory", do="weigh")

    def failed(self, failure: Failure) -> list[Row]:
        return [{**self.facts, "status": "failed", "stage": failure.stage, "reason": failure.reason}]

    def rows(self, yardstick: "TimedMethod") -> list[Row]:
        """The row of the whole call, and one for each part, beside the yardstick's same part or its whole call."""
        processor = [own["processor"] / other["processor"] if other["processor"] else float("nan")
                     for own, other in zip(self.calls, yardstick.calls, strict=True)]  # fmt: skip
        whole = {**self.facts, "processor_ratio": median(processor),
                 "times": " ".join(f"{call['seconds']:.4g}" for call in self.calls)}  # fmt: skip
        rows = []
        for part in dict.fromkeys(["", *(part for call in self.calls for part in call["parts"])]):
            times = [call["parts"].get(part, 0.0) if part else call["seconds"] for call in self.calls]
            others = [call["parts"].get(part, call["seconds"]) for call in yardstick.calls]
            ratios = [own / other for own, other in zip(times, others, strict=True)]
            rows.append({"part": part, "status": "ok", "rounds": len(times), "ratio": median(ratios), "ratio_min":
                         min(ratios), "ratio_max": max(ratios), "seconds": median(times), **({} if part else whole)})
        return rows


class _Group:
    """Methods whose processes live at the same time, the yardstick first."""

    def __init__(
        self, case: Case, entries: Mapping[str, Entry], settings: Settings, tell: Callable[[str], None]
    ) -> None:
        self.case, self.entries, self.settings, self.tell = case, entries, settings, tell
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
                self._turns(self.members[:] if number % 2 == 0 else self.members[::-1], "count")
            self.tell("memory")
            self._turns(self.members[:], "weigh")
        if yardstick not in self.failed:
            return {member.name: member.rows(self.members[0]) for member in self.members} | self.failed
        waiting.clear()
        (failure,) = self.failed[yardstick]
        reason = f"{yardstick}, the yardstick, failed at {failure['stage']}: {failure['reason']}"
        return {name: [{"status": "failed", "stage": "yardstick", "reason": reason}] for name in names} | self.failed

    def _turns(self, members: list[TimedMethod], step: str) -> None:
        for member in members:
            if member in self.members:
                self._step(member, getattr(member, step))

    def _admit(self, name: str, stack: ExitStack) -> bool:
        """Start a method and bring it to its first call that counts; ``False``: it must wait for the next group."""
        room = None  # GiB that are left for one more; not bounded
        if self.settings.device == "cpu":
            room = self.settings.memory - sum(member.holds for member in self.members) / _GIB
        crowded = len(self.members) > 1
        if crowded and room is not None and room * _GIB < max(member.most for member in self.members):
            return False
        self.tell(f"{name}: set-up")
        method = TimedMethod(name, self.entries[name], self.case, self.settings, room)
        stack.callback(method.close)
        if not self._step(method, lambda: method.prepare(self.settings.warmups), crowded=crowded):
            return name in self.failed
        if crowded and room is not None and not self._fit([*self.members, method]):
            method.close()
            return False
        self.members.append(method)
        return True

    def _fit(self, methods: list[TimedMethod]) -> bool:
        """Whether all can be held at once, and any one of them be at its peak."""
        total = sum(method.holds for method in methods) + max(method.most - method.holds for method in methods)
        return total <= self.settings.memory * _GIB

    def _step(self, method: TimedMethod, step: Callable[[], None], crowded: bool = False) -> bool:
        """Whether a step was done; what failed is a row, unless it lacked memory because it was not alone."""
        try:
            step()
            return True
        except Failure as failure:
            method.close()
            if not (crowded and failure.of_memory):
                self.failed[method.name] = method.failed(failure)
            # Without the yardstick there are no ratios.
            first = self.members[:1] == [method]
            self.members = [] if first else [member for member in self.members if member is not method]
            return False
