"""One method on one model, in a process of its own, which works only when it is told to.

``python -m benchmarks.speed_worker JOB``, with a job as ``benchmarks.interleaved`` writes it. A line of standard input
is what to do next, a line of standard output what came of it, both JSON; the end of the input is the end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from benchmarks.measure import bounded, one_line
from benchmarks.speed_memory import Memory
from benchmarks.speed_models import build, images_for

Reply = dict[str, Any]


class Bench:
    """What a worker can be told to do, by name.

    Args:
        job: the names of the registry's module, the method and the model; batch, size, device, threads.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.cuda = job["device"] == "cuda"
        self.memory = Memory(job["device"])
        self.before = 0
        torch.set_num_threads(job["threads"])

    def make(self, limit: float | None) -> Reply:
        """The model and its images, and what the method needs that is not timed; ``limit``: GiB."""
        bounded(limit)
        job = self.job
        method = importlib.import_module(job["registry"]).METHODS[job["method"]]
        if not method.suits(job["model"], job["device"]):
            raise ValueError(f"does not apply to {job['model']} on {job['device']}")
        form = torch.channels_last if method.channels_last else torch.contiguous_format
        model = build(job["model"]).to(job["device"], memory_format=form)
        images = images_for(job["batch"], job["size"]).to(job["device"]).contiguous(memory_format=form)
        self.begun = method.begin(model, images)
        self.memory.settle()
        self.before = self.memory.now() or 0
        self.memory.start_over()
        self.memory.most = None
        return {
            "device_name": torch.cuda.get_device_name() if self.cuda else "",
            "version": f"{method.package} {metadata.version(method.package)}",
            "memory_format": "channels-last" if method.channels_last else "contiguous",
        }

    def set_up(self) -> Reply:
        seconds, self.call = self._timed(self.begun)
        return {"seconds": seconds}

    def measure(self) -> Reply:
        """One call."""
        return {"seconds": self._timed(self.call)[0]}

    def weigh(self) -> Reply:
        """What is held between calls, and by one more call at its peak, beyond what model and images are; MiB."""
        self.memory.settle()
        held = self.memory.now()
        self.memory.start_over()
        self._timed(self.call)
        peak = self.memory.peak()
        self.memory.note()
        if held is None or peak is None or self.memory.most is None:
            return {}
        return {
            "held_mb": _mib(held - self.before),
            "call_mb": _mib(peak - held),
            "peak_mb": _mib(self.memory.most - self.before),
        }

    def holds(self) -> Reply:
        """Bytes of the machine's memory that this process has to itself, now and at most."""
        if self.cuda:
            return {"holds": 0, "most": 0}  # what CUDA holds is elsewhere
        self.memory.note()
        shared = self.memory.shared() or 0
        return {"holds": (self.memory.now() or 0) - shared, "most": (self.memory.most or 0) - shared}

    def _timed(self, run: Callable[[], Any]) -> tuple[float, Any]:
        gc.collect()  # what earlier calls left in cycles is neither this one's time nor its memory
        self._wait()
        began = time.perf_counter()
        result = run()
        self._wait()
        return time.perf_counter() - began, result

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _mib(size: int) -> float:
    return max(0.0, size / 2**20)


def main() -> None:
    warnings.filterwarnings("ignore")
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a method prints goes to the log
    bench = Bench(json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(bench, request.pop("do"))(**request)
        except Exception as error:
            reply = {"error": one_line(error)}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
