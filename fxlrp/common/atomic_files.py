"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxlrp.common.errors import ExportError, FileError, FxlrpError


@contextmanager
def whole(path: Path, kind: type[FxlrpError] = FileError, *, makes_folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``; the file written there replaces ``path``, unless the block raises.

    Args:
        path: the file.
        kind: the error where the file cannot be written, for lack of space or of permission.
        makes_folder: whether its folder is made where there is none.
    """
    try:
        if makes_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
        try:
            yield folder / path.name
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise kind(f"{path} cannot be written, and is as it was: {error.strerror or error}") from error


def checked_path(path: Any) -> Path:
    """A path as the caller gives it.

    Raises:
        ExportError: it is none, or the system takes none like it.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise ExportError(f"a file is named by a str or a path, not {path!r}")
    if reason := unusable(path):
        raise ExportError(f"{path}: {reason}")
    return Path(path)


def unusable(path: str | os.PathLike[str]) -> str:
    """Why the system does not even look for a file of this name, such as a name that is too long; else ``""``."""
    try:
        Path(path).exists()
    except OSError as error:
        return error.strerror or str(error)
    return ""
