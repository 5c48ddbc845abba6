"""Worker processes, each of which does one thing at a time, as it is asked to; and what they and their code are.

Whatever ends a worker is a `Failure`.
"""

import importlib
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HERE = Path(__file__).parent
ROOT = HERE.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Failure(Exception):
    """A worker failed: at which stage, and why."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.row = {"status": "failed", "stage": stage, "reason": reason}


class Worker:
    """A process that works when it is asked to, until `close`.

    ``tasks``: the module whose class ``Tasks`` is made of ``job`` and has a method for each thing to do; ``timeout``:
    seconds for one of these; ``threads``: of torch and of the libraries under it. A job may name the ``memory``, the
    most GiB to ask the system for, and a ``checkout`` of fxlrp, which the process imports in place of this one.
    """

    def __init__(self, tasks: str, job: Row, timeout: float, threads: int) -> None:
        self.timeout, self._scratch = timeout, tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name)
        self.log = folder / "log.txt"
        environment = {
            # Caches of its own: what an earlier run compiled must be compiled again.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton"),
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.pipe, theirs = Pipe()
        code = f"from benchmarks.workers import serve; serve({theirs.fileno()})"
        with self.log.open("wb") as log, theirs:
            # A session of its own, so that whatever it starts can be ended with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self.pipe.send((tasks, {**job, "threads": threads}))

    def ask(self, stage: str, do: str) -> Row:
        """What one of the tasks returns; ``stage`` names it in a `Failure`."""
        try:
            self.pipe.send(do)
            if not self.pipe.poll(self.timeout):
                raise Failure(stage, f"took longer than {self.timeout:.0f} s")
            reply, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise Failure(stage, self._how_it_ended()) from None
        if error:
            raise Failure(stage, error)
        return reply

    def kill(self) -> None:
        """End the process, with whatever it started, such as compilers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and remove what it wrote."""
        if not self.pipe.closed:
            self.pipe.close()
            self.kill()
            self.process.wait()
            self._scratch.cleanup()

    def _how_it_ended(self) -> str:
        """Why the process is no more, from its exit status and the last line of what it wrote."""
        code, lines = self.process.wait(), self.log.read_text(errors="replace").strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        if code >= 0:
            return f"ended with status {code}{last}"
        memory = ", probably out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}{last}"


def serve(descriptor: int) -> None:
    """Be a worker: do what is asked for until the pipe is closed."""
    warnings.filterwarnings("ignore")
    pipe, tasks = connection.Connection(descriptor), None
    with suppress(EOFError):
        start = pipe.recv()
        while do := pipe.recv():
            try:
                tasks = tasks or _tasks(*start)
                pipe.send((getattr(tasks, do)(), ""))
            except Exception as error:
                pipe.send((None, one_line(error)))


def _tasks(name: str, job: Row) -> Any:
    # A process that asks for too much gets an error; if all together do, one of these is to end, not the run.
    if memory := job.get("memory"):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if checkout := job.get("checkout"):  # fxlrp, and it alone, comes from there
        sys.path.insert(0, checkout)
        module = importlib.import_module("fxlrp")
        sys.path.remove(checkout)
        if not Path(module.__file__).is_relative_to(checkout):
            raise ImportError(f"{checkout} holds no fxlrp")
    return importlib.import_module(name).Tasks(job)


def one_line(error: BaseException) -> str:
    """An error as one line of bounded length, with files named from their package on."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r"[^\s'\"(]*/(?:site|dist)-packages/", "", text).replace(f"{ROOT}/", "")
    return text if len(text) <= 600 else text[:600] + " …"


def now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}"


def versions(*packages: str) -> str:
    """The packages that are installed, with their versions."""
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages if find_spec(package))


def commit(checkout: Path = ROOT) -> str:
    """Which state of fxlrp's code lies in ``checkout``."""
    commands = ["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--", "fxlrp"]
    with suppress(OSError, subprocess.CalledProcessError):
        head, changes = (subprocess.check_output(command, cwd=checkout, stderr=subprocess.DEVNULL, text=True).strip()
                         for command in commands)  # fmt: skip
        return f"commit {head}{' with changes' if changes else ''}"
    return "no commit"


def processor() -> str:
    """The name of the CPU."""
    with suppress(OSError, TypeError):  # other systems have no such file, or no such line in it
        return re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    return platform.processor() or platform.machine()
