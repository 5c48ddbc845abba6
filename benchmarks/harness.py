"""Methods timed side by side: one process each, one call each in turn, and ratios of calls of the same round.

What else happens on a machine, and how warm it is, changes over minutes. Calls that follow one another see the same
machine, so the ratio of each to the yardstick's call of its round is taken, and the median of these. The placebo is the
yardstick in a second process: how far its ratio lies from 1 is what nothing explains.
"""

import ctypes
import gc
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from math import nan
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any

import psutil
import torch

import fxlrp
from benchmarks.methods import FORMATS, Case, Trial
from benchmarks.workers import Failure, Row, Worker, commit, now, processor

PLACEBO = "placebo"
WARMUPS = 2  # calls after the first one that do not count
Entry = tuple[str, str]
"""A method by its name among those that are timed, and the checkout of fxlrp that it runs, or ""."""


@dataclass(frozen=True)
class Settings:
    """How methods are timed, which ``methods`` names: the module and its dictionary of them, with a colon between.

    ``rounds``: how many calls count; ``timeout``: seconds for one step of a worker; ``together``: how many take turns
    beside yardstick and placebo; ``device``: ``"cpu"`` or ``"cuda"``.
    """

    methods: str
    rounds: int = 15
    threads: int = 2
    timeout: float = 900
    together: int = 6
    device: str = "cpu"


def measure(
    case: Case, entries: Mapping[str, Entry], settings: Settings, tell: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """A row for each entry and for the placebo, measured or failed; and a row for each part that a method tells.

    They are measured in groups whose calls take turns, each with the yardstick anew; the placebo is in the first. What
    fails beside others is tried once more beside the yardstick alone, because memory may have lacked. ``entries`` are
    by the name in the row, the yardstick first; ``tell`` is called with what is done.
    """
    yardstick, *others = entries
    entries = {yardstick: entries[yardstick], PLACEBO: entries[yardstick], **entries}
    common = {
        **asdict(case), "device": settings.device, "threads": settings.threads, "dtype": "float32", "date": now(),
        "device_name": torch.cuda.get_device_name() if settings.device == "cuda" else processor(),
        "busy": psutil.cpu_percent(0.5) / 100 * psutil.cpu_count(), "torch": torch.__version__, "yardstick": yardstick,
        "run": f"{case.model} {case.size} {case.batch} {datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}",
    }  # fmt: skip
    size, rows = settings.together, {}
    groups = [[PLACEBO, *others[:size]], *(others[start : start + size] for start in range(size, len(others), size))]
    for number, names in enumerate(groups, start=1):  # groups are added on the way
        measured = _side_by_side([yardstick, *names], entries, case, settings, tell)
        for name in names if number > 1 else measured:
            rows[name] = [{**common, "group": number, "method": name, **row} for row in measured[name]]
        groups += [[name] for name in names if len(names) > 1 and rows[name][0]["stage"] not in ("", "yardstick")]
    return [row for name in entries for row in rows[name]]


def _side_by_side(
    names: Sequence[str], entries: Mapping[str, Entry], case: Case, settings: Settings, tell: Callable[[str], None]
) -> dict[str, list[Row]]:
    """The rows of methods whose processes live at the same time, the yardstick first."""
    methods: list[TimedMethod] = []

    def attempt(method: TimedMethod, step: Callable[[], None]) -> None:
        """Do a step, unless the method or the yardstick has failed: without the yardstick there are no ratios."""
        if not method.failure and not methods[0].failure:
            try:
                step()
            except Failure as failure:
                method.failure = failure
                method.close()

    with ExitStack() as stack:
        for name in names:
            tell(f"{name}: set-up")
            methods.append(stack.enter_context(closing(TimedMethod(name, entries[name], case, settings))))
            attempt(methods[-1], methods[-1].prepare)
        for number in range(settings.rounds):
            tell(f"round {number + 1} of {settings.rounds}")
            # There and back, so that what drifts evenly has no side.
            for method in methods if number % 2 == 0 else methods[::-1]:
                attempt(method, method.count)
        tell("memory")
        for method in methods:
            attempt(method, method.weigh)
    return {method.name: method.rows(methods[0]) for method in methods}


class TimedMethod(Worker):
    """One method in a process of its own.

    ``facts``: columns of its row, as they become known; ``calls``: the replies to the calls that count; ``failure``:
    what ended it, if anything did.
    """

    def __init__(self, name: str, entry: Entry, case: Case, settings: Settings) -> None:
        self.name, self.facts, self.calls = name, {}, []
        self.failure: Failure | None = None
        method, checkout = entry
        job = {**asdict(settings), "case": asdict(case), "method": method, "checkout": checkout}
        super().__init__("benchmarks.harness", job, settings.timeout, settings.threads)

    def prepare(self) -> None:
        """Do all up to the first call that counts."""
        self.facts |= self.ask("model", "make")
        self.facts |= self.ask("set-up", "set_up")
        self.facts["first_s"] = self.ask("first call", "measure")["seconds"]
        for _ in range(WARMUPS):
            self.ask("warm-up", "measure")

    def count(self) -> None:
        """One call that counts."""
        self.calls.append(self.ask("round", "measure"))

    def weigh(self) -> None:
        """One more call, for its memory."""
        self.facts |= self.ask("memory", "weigh")

    def rows(self, yardstick: "TimedMethod") -> list[Row]:
        """The row of the whole call, and one for each part, beside the yardstick's same part or its whole call."""
        if self.failure:
            return [{**self.facts, **self.failure.row}]
        if yardstick.failure:
            how = "failed at {stage}: {reason}".format(**yardstick.failure.row)
            return [Failure("yardstick", f"{yardstick.name}, the yardstick, {how}").row]
        both = list(zip(self.calls, yardstick.calls, strict=True))
        processor = median(one["processor"] / (other["processor"] or nan) for one, other in both)
        times = " ".join(f"{call['seconds']:.4g}" for call in self.calls)
        whole = {**self.facts, "processor_ratio": processor, "times": times}
        rows = []
        for part in dict.fromkeys(["", *(part for call in self.calls for part in call["parts"])]):
            times = [call["parts"].get(part, 0.0) if part else call["seconds"] for call in self.calls]
            others = [other["parts"].get(part, other["seconds"]) for _, other in both]
            ratios = [time / other for time, other in zip(times, others, strict=True)]
            rows.append({
                "part": part, "status": "ok", "stage": "", "rounds": len(times), "ratio": median(ratios),
                "ratio_min": min(ratios), "ratio_max": max(ratios), "seconds": median(times), **({} if part else whole),
            })  # fmt: skip
        return rows


class Tasks:
    """What the process of a method can be asked to do: a step at a time."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self.job, self.device, self.memory = job, job["device"], Memory(job["device"])

    def make(self) -> Row:
        """The model and its images, and what the method needs that is not timed."""
        case, self.method = Case(**self.job["case"]), resolve_name(self.job["methods"])[self.job["method"]]
        form = "channels-last" if self.method.channels_last else "contiguous"
        model, images = (each.to(self.device, memory_format=FORMATS[form]) for each in self.method.subject(case))
        trial = Trial(model, images, case.variant)
        self.steps = self.method.steps(trial)
        next(self.steps)
        self.before = self.memory.start_over()
        package, checkout = self.method.package, Path(fxlrp.__file__).parents[1]
        version = f"{fxlrp.__version__}, {commit(checkout)}" if package == "fxlrp" else metadata.version(package)
        return {"version": f"{package} {version}", "memory_format": form, **trial.facts}

    def set_up(self) -> Row:
        seconds, _, self.call = self._timed(lambda: next(self.steps))
        return {"setup_s": seconds}

    def measure(self) -> Row:
        """Seconds of one call, by the clock and of the processor; and of its parts, if it tells them."""
        seconds, processor, result = self._timed(self.call)
        parts = result if self.method.parts else {}
        return {"seconds": sum(parts.values()) if parts else seconds, "processor": processor, "parts": parts}

    def weigh(self) -> Row:
        """MiB held between calls, at the peak of one more call, and at the peak of all, beyond model and images."""
        most, between = self.memory.peak(), self.memory.start_over()
        self._timed(self.call)
        peak = self.memory.peak()
        if peak is None:
            return {}
        sizes = {"held_mb": between - self.before, "call_mb": peak - between, "peak_mb": max(most, peak) - self.before}
        return {name: max(0.0, size / 2**20) for name, size in sizes.items()}

    def _timed(self, run: Callable[[], Any]) -> tuple[float, float, Any]:
        gc.collect()  # what earlier calls left in cycles is neither this one's time nor its memory
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began, processor = time.perf_counter(), time.process_time()
        result = run()
        wait()
        return time.perf_counter() - began, time.process_time() - processor, result


class Memory:
    """Bytes that a process holds on a CPU, or torch's allocator on CUDA; no peak where the system does not tell it."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def peak(self) -> int | None:
        """Since `start_over`."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        with suppress(OSError, TypeError):
            return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    def start_over(self) -> int:
        """Give back what is free, and let `peak` count from here; what is held is in use."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        with suppress(OSError, AttributeError):  # glibc keeps what was freed; other C libraries have no such call
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        held = psutil.Process().memory_info().rss
        with suppress(OSError):  # of a system without the file, which makes the high-water mark what is held now
            Path("/proc/self/clear_refs").write_text("5")
        return held
