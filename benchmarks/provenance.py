"""What rows were made with: the machine, the state of the code, the versions of packages."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY = psutil.virtual_memory().total / 2**30
"""In GiB."""


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


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores of the machine are busy right now, whatever keeps them so."""
    return psutil.cpu_percent(seconds) / 100 * psutil.cpu_count()


def processor() -> str:
    """The name of the CPU."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
