"""Worker processes: a worker starts with a job and answers one request at a time; whatever ends it is a `Failure`.

They talk in JSON through a pipe. A request is ``{"do": NAME, …}``; the answer is any number of ``{"progress": {…}}``,
then one ``{"reply": {…}}`` or ``{"error": TEXT}``.
"""

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import Pipe, connection
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
        self.timeout, self.progress = timeout, {}
        self._scratch = tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name)
        self.log = folder / "log.txt"
        environment = {
            # Caches of its own: what an earlier run compiled must be compiled again.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton"),
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.pipe, theirs = Pipe()
        started = [tasks, {**job, "threads": threads}, memory, checkout and str(Path(checkout).resolve())]
        code = f"from benchmarks.workers import serve; serve({theirs.fileno()})"
        with self.log.open("wb") as log, theirs:
            # A session of its own, so that whatever it starts can be ended with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(started)], cwd=ROOT, env=os.environ | environment, stdout=log,
                stderr=log, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End the process, with whatever it started, such as compilers."""
        if not self.pipe.closed:
            self.pipe.close()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
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
            self.pipe.send_bytes(json.dumps(request).encode())

    def poll(self) -> Row | None:
        """The reply, or ``None`` while the worker works on it."""
        while self.pipe.poll():
            try:
                answer = json.loads(self.pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                raise Failure(self.stage, self._how_it_ended()) from None
            if "error" in answer:
                raise Failure(self.stage, answer["error"])
            if "reply" in answer:
                return answer["reply"]
            self.progress = answer["progress"]
        if time.monotonic() >= self.until:
            raise Failure(self.stage, f"took longer than {self.timeout:.0f} s")
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
    by_pipe = {worker.pipe: worker.until - time.monotonic() for worker in workers}
    connection.wait(list(by_pipe), max(0.0, min(by_pipe.values())))


def serve(descriptor: int) -> None:
    """Be a worker: answer requests until the pipe is closed."""
    warnings.filterwarnings("ignore")
    pipe, tasks = connection.Connection(descriptor), None

    def tell(kind: str, what: object) -> None:
        pipe.send_bytes(json.dumps({kind: what}).encode())

    with suppress(EOFError):
        while request := json.loads(pipe.recv_bytes()):
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
