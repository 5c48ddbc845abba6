"""The worker that times one method on one case, a step at a time."""

import ctypes
import gc
import importlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fxlrp
from benchmarks import models
from benchmarks.methods import Case, Method, Trial
from benchmarks.provenance import commit
from benchmarks.workers import Row


def registry(name: str) -> tuple[Mapping[str, Method], Callable[[Case], tuple[Any, Any]]]:
    """``METHODS`` of a module, and its ``subject``, which makes the model and the images of a case."""
    module = importlib.import_module(name)
    return module.METHODS, getattr(module, "subject", models.subject)


class Tasks:
    """What a worker can be asked to do: a step at a time."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self.job, self.device, self.memory = job, job["device"], Memory(job["device"])

    def make(self) -> Row:
        """The model and its images, and what the method needs that is not timed."""
        methods, subject = registry(self.job["registry"])
        case, self.method = Case(**self.job["case"]), methods[self.job["method"]]
        if not self.method.suits(case.model, self.device):
            raise ValueError(f"does not apply to {case.model} on {self.device}")
        form = torch.channels_last if self.method.channels_last else torch.contiguous_format
        model, images = subject(case)
        model, images = model.to(self.device, memory_format=form), images.to(self.device).contiguous(memory_format=form)
        trial = Trial(case, model, images)
        self.steps = self.method.steps(trial)
        next(self.steps)
        self.before = self.memory.start_over() or 0
        package = self.method.package
        version = f"{package} {metadata.version(package)}" if package != "fxlrp" else (
            f"fxlrp {fxlrp.__version__}, {commit(Path(fxlrp.__file__).parents[1])}"
        )  # fmt: skip
        named = {"device_name": torch.cuda.get_device_name()} if self.device == "cuda" else {}
        form = "channels-last" if self.method.channels_last else "contiguous"
        return {"version": version, "memory_format": form, **named, **trial.facts}

    def set_up(self) -> Row:
        seconds, _, self.call = self._timed(lambda: next(self.steps))
        return {"seconds": seconds}

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
        if between is None or peak is None:
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
    """Bytes that a process holds on a CPU, or torch's allocator on CUDA; ``None`` where the system does not tell."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def peak(self) -> int | None:
        """Since `start_over`."""
        return torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")

    def start_over(self) -> int | None:
        """Give back what is free, and let `peak` count from here; what is held is in use."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        with suppress(OSError, AttributeError):  # glibc keeps what was freed; other C libraries have no such call
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        held = _status("VmRSS")
        with suppress(OSError):  # of a system without the file, which makes the high-water mark what is held now
            Path("/proc/self/clear_refs").write_text("5")
        return held


def _status(name: str) -> int | None:
    """An entry of this process's status, in bytes."""
    with suppress(OSError):
        entry = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(entry[1]) * 1024 if entry else None
    return None
