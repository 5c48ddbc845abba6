"""Worker processes: a worker starts with a job and answers one request at a time; whatever ends it is a `Failure`.

A request is one line of JSON on standard input, ``{"do": NAME, …}``. The answer is any number of lines
``{"progress": {…}}`` on standard output, then one line ``{"reply": {…}}`` or ``{"error": TEXT}``.
"""

import importlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT

Row = dict[str, Any]


class Failure(Exception):
    """A worker failed: at which stage, and why."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage, self.reason = stage, reason

    @property
    def of_memory(self) -> bool:
        return any(word in self.reason for word in ("memory", "bad_alloc", "SIGKILL"))


class Worker:
    """A process that works when it is asked to, until `close`.

    Args:
        tasks: the module whose class ``Tasks`` has a method per request; it is made of ``job`` and of a function that
            sends progress, which is kept in ``progress``.
        job: what to work on; JSON.
        timeout: seconds for one request.
        threads: of torch and of the libraries under it.
        memory: the most GiB that it may ask the system for; ``None``: no limit.
        checkout: another checkout of fxlrp, which the process imports in place of this one.
    """

    def __init__(
        self, tasks: str, job: Row, timeout: float, threads: int, memory: float | None = None, checkout: str = ""
    ) -> None:
        self.timeout, self.progress, self.closed, self._unread = timeout, {}, False, b""
        self._scratch = tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name)
        self.log = folder / "log.txt"
        environment = {
            # Caches of its own: what an earlier run compiled must be compiled again.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton"),
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        }  # fmt: skip
        started = [tasks, {**job, "threads": threads}, memory, checkout and str(Path(checkout).resolve())]
        command = [sys.executable, "-c", "from benchmarks.workers import serve; serve()", json.dumps(started)]
        with self.log.open("wb") as log:
            # A session of its own, so that whatever it starts can be ended with it.
            self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, start_new_session=True)  # fmt: skip

    def close(self) -> None:
        """End the process, with whatever it started, such as compilers."""
        if self.closed:
            return
        self.closed = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        self._scratch.cleanup()

    def ask(self, stage: str, **request: Any) -> Row:
        """The reply to a request; ``stage`` names it in a `Failure`."""
        self.send(stage, **request)
        while (reply := self.poll()) is None:
            wait([self])
        return reply

    def send(self, stage: str, **request: Any) -> None:
        """Send a request without waiting for the reply."""
        self.stage, self.progress, self.until = stage, {}, time.monotonic() + self.timeout
        with suppress(BrokenPipeError):  # of a dead process: `poll` tells how it ended
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def poll(self) -> Row | None:
        """The reply, or ``None`` while the worker works on it."""
        if not select.select([self.process.stdout], [], [], 0)[0]:
            if time.monotonic() >= self.until:
                raise Failure(self.stage, f"took longer than {self.timeout:.0f} s")
            return None
        received = os.read(self.process.stdout.fileno(), 65536)
        if not received:
            raise Failure(self.stage, self._how_it_ended())
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in map(json.loads, lines):
            if "error" in line:
                raise Failure(self.stage, line["error"])
            if "reply" in line:
                return line["reply"]
            self.progress = line["progress"]
        return None

    def _how_it_ended(self) -> str:
        """Why the process is no more, from its exit status and the last line of what it wrote."""
        code, lines = self.process.wait(), self.log.read_text(errors="replace").strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        if code >= 0:
            return f"ended with status {code}{last}"
        memory = ", probably out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}{last}"


def wait(workers: Iterable[Worker]) -> None:
    """Return when one of the workers has something to read, or has passed its deadline."""
    by_pipe = {worker.process.stdout: worker.until - time.monotonic() for worker in workers}
    select.select(list(by_pipe), [], [], max(0.0, min(by_pipe.values())))


def serve() -> None:
    """Be a worker: answer requests until standard input ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what is printed goes to the log

    def tell(kind: str, what: object) -> None:
        replies.write(json.dumps({kind: what}) + "\n")

    tasks = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            tasks = tasks or _tasks(*json.loads(sys.argv[1]), lambda progress: tell("progress", progress))
            tell("reply", getattr(tasks, request.pop("do"))(**request))
        except Exception as error:
            tell("error", one_line(error))


def _tasks(name: str, job: Row, memory: float | None, checkout: str, progress: Any) -> Any:
    # A process that asks for too much gets an error; if all together do, one of these is to end, not the run.
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if checkout:  # fxlrp, and it alone, comes from there
        sys.path.insert(0, checkout)
        module = importlib.import_module("fxlrp")
        sys.path.remove(checkout)
        if not Path(module.__file__).is_relative_to(checkout):
            raise ImportError(f"{checkout} holds no fxlrp")
    return importlib.import_module(name).Tasks(job, progress)


def one_line(error: BaseException) -> str:
    """An error as one line of bounded length, with files named from their package on."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r"[^\s'\"(]*/(?:site|dist)-packages/", "", text).replace(f"{ROOT}/", "")
    return text if len(text) <= 600 else text[:600] + " …"
