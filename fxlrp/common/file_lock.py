"""A lock that one process of a machine can hold, and that ends with it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]


def lock_file(folder: Path) -> Path:
    """The file of the lock on a folder: beside other temporary files, so that the folder holds results alone."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"fxlrp-{name}.lock"


class FileLock:
    """A lock by an open file; the system lets go of it when the process ends, however it ends.

    Args:
        path: the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def take(self) -> bool:
        """Take the lock; whether nobody else has it.

        Raises:
            OSError: the file cannot be made.
        """
        file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115, it is open for as long as the lock is held
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if fcntl is None:
                os.unlink(self.path)
