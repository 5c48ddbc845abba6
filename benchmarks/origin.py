"""What rows were made with: versions of packages, the state of the code, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from benchmarks.processes import ROOT

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
"""In GiB."""


def versions(*packages: str) -> str:
    """The packages that are installed, with their versions."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str:
    """Which state of the code was measured."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "fxlrp")
        return f"commit {git('rev-parse', '--short', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores are kept busy right now, by whatever runs; ``None`` where the system does not tell."""
    try:
        (busy, began), _, (later, ended) = _ticks(), time.sleep(seconds), _ticks()
    except OSError:
        return None
    return CORES * (later - busy) / max(1, ended - began)


def _ticks() -> tuple[int, int]:
    """Of all cores since the machine was started: those that were not idle, and all."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def processor() -> str:
    """The name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
