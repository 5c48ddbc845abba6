"""How much memory this process holds, and held at most: on a CPU the process, on CUDA torch's allocator."""

from __future__ import annotations

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Memory:
    """Bytes now and at most; ``None`` where the system does not tell.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.most: int | None = None

    def now(self) -> int | None:
        return int(torch.cuda.memory_allocated()) if self.cuda else _status("VmRSS")

    def shared(self) -> int | None:
        """The part of a process that others have as well: files, such as libraries."""
        return _status("RssFile")

    def start_over(self) -> None:
        """Let :meth:`peak` count from here; :attr:`most` goes on."""
        self.note()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                _CLEAR.write_text("5")  # makes the high-water mark what is held now

    def peak(self) -> int | None:
        """Since :meth:`start_over`."""
        return int(torch.cuda.max_memory_allocated()) if self.cuda else _status("VmHWM")

    def note(self) -> None:
        """Enter the peak so far into :attr:`most`."""
        peak = self.peak()
        if peak is not None:
            self.most = max(peak, self.most or 0)

    def settle(self) -> None:
        """Give back what is free: what is held afterwards is in use."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            return
        # glibc keeps what was freed; other C libraries have no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
