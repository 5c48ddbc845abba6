"""The worker that times one method on one case, a step at a time."""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fxlrp
from benchmarks import models
from benchmarks.methods import Case, Method, Trial
from benchmarks.provenance import commit

Reply = dict[str, Any]


def registry(name: str) -> tuple[dict[str, Method], Callable[[Case], tuple[Any, Any]]]:
    """``METHODS`` of a module, and its ``subject``, which makes the model and the images of a case."""
    module = importlib.import_module(name)
    return module.METHODS, getattr(module, "subject", subject)


def subject(case: Case) -> tuple[Any, Any]:
    """A model of `benchmarks.models`, and noise."""
    return models.build(case.model), models.noise(3, case.size, case.size, batch=case.batch)


class Tasks:
    """What a worker can be asked for.

    Args:
        job: ``case``, ``method``, ``registry``, ``device``, ``threads``.
        progress: not used, because every request is one step.
    """

    def __init__(self, job: dict[str, Any], progress: object) -> None:
        torch.set_num_threads(job["threads"])
        self.job, self.device = job, job["device"]
        self.memory = Memory(self.device)

    def make(self) -> Reply:
        """The model and its images, and what the method needs that is not timed."""
        methods, make_subject = registry(self.job["registry"])
        case, self.method = Case(**self.job["case"]), methods[self.job["method"]]
        if not self.method.suits(case.model, self.device):
            raise ValueError(f"does not apply to {case.model} on {self.device}")
        form = torch.channels_last if self.method.channels_last else torch.contiguous_format
        model, images = make_subject(case)
        model, images = model.to(self.device, memory_format=form), images.to(self.device)
        trial = Trial(case, model, images.contiguous(memory_format=form) if images.dim() == 4 else images)
        self.steps = self.method.steps(trial)
        next(self.steps)
        self.memory.settle()
        self.before = self.memory.now() or 0
        self.memory.start_over()
        self.memory.most = None
        named = {"device_name": torch.cuda.get_device_name()} if self.device == "cuda" else {}
        form = "channels-last" if self.method.channels_last else "contiguous"
        return {"version": self._version(), "memory_format": form, **named, **trial.facts}

    def set_up(self) -> Reply:
        seconds, _, self.call = self._timed(lambda: next(self.steps))
        return {"seconds": seconds}

    def measure(self) -> Reply:
        """Seconds of one call, by the clock and of the processor; and of its parts, if it tells them."""
        seconds, processor, result = self._timed(self.call)
        parts = result if self.method.parts else {}
        return {"seconds": sum(parts.values()) if parts else seconds, "processor": processor, "parts": parts}

    def weigh(self) -> Reply:
        """MiB held between calls, at the peak of one more call, and at the peak of all, beyond model and images."""
        self.memory.settle()
        between = self.memory.now()
        self.memory.start_over()
        self._timed(self.call)
        peak = self.memory.peak()
        self.memory.note()
        if between is None or peak is None:
            return {}
        sizes = {"held_mb": between - self.before, "call_mb": peak - between, "peak_mb": self.memory.most - self.before}
        return {name: max(0.0, size / 2**20) for name, size in sizes.items()}

    def holds(self) -> Reply:
        """Bytes of the machine's memory that this process has to itself, now and at most."""
        if self.device == "cuda":
            return {"holds": 0, "most": 0}  # what CUDA holds is elsewhere
        self.memory.note()
        shared = status_bytes("RssFile") or 0  # files, such as libraries
        return {"holds": (self.memory.now() or 0) - shared, "most": (self.memory.most or 0) - shared}

    def _version(self) -> str:
        if self.method.package == "fxlrp":
            return f"fxlrp {fxlrp.__version__}, {commit(Path(fxlrp.__file__).parents[1])}"
        return f"{self.method.package} {metadata.version(self.method.package)}"

    def _timed(self, run: Callable[[], Any]) -> tuple[float, float, Any]:
        gc.collect()  # what earlier calls left in cycles is neither this one's time nor its memory
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began, processor = time.perf_counter(), time.process_time()
        result = run()
        wait()
        return time.perf_counter() - began, time.process_time() - processor, result


class Memory:
    """Bytes that are held now and were at most: on a CPU by the process, on CUDA by torch's allocator.

    They are ``None`` where the system does not tell.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.most: int | None = None

    def now(self) -> int | None:
        return int(torch.cuda.memory_allocated()) if self.cuda else status_bytes("VmRSS")

    def peak(self) -> int | None:
        """Since `start_over`."""
        return int(torch.cuda.max_memory_allocated()) if self.cuda else status_bytes("VmHWM")

    def start_over(self) -> None:
        """Let `peak` count from here; `most` goes on."""
        self.note()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # makes the high-water mark what is held now

    def note(self) -> None:
        """Enter the peak so far into `most`."""
        self.most = max((size for size in (self.peak(), self.most) if size is not None), default=None)

    def settle(self) -> None:
        """Give back what is free: what is held afterwards is in use."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            return
        with suppress(OSError, AttributeError):  # glibc keeps what was freed; other C libraries have no such call
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def status_bytes(name: str) -> int | None:
    """An entry of this process's status."""
    with suppress(OSError):
        entry = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(entry[1]) * 1024 if entry else None
    return None
