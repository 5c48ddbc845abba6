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


def made_folder(folder: Path, kind: type[FxlrpError] = FileError) -> Path:
    """Make a folder, and those that it lies in, where there is none.

    Raises:
        FxlrpError: of this kind; it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise kind(f"the folder {folder} cannot be made: {error.strerror or error}") from error
    return folder


def unwritable(path: Path) -> str:
    """Why nothing can be written at this path, as far as can be told without writing; else ``""``."""
    if reason := unusable(path):
        return reason
    folder = path if path.is_dir() else path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"a file is in the place of the folder {folder}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"nothing may be written in the folder {folder}"


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
