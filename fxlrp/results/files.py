"""Results as files that other programs read: NumPy archives, JSON, and tables for polars, pandas or a spreadsheet."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.common.version import __version__

VERSION = 1
"""Of the schema of files, see docs/results_as_data.md."""

Writer = Callable[[Path], object]


def to_array(value: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor; NumPy has no bfloat16, which becomes float32."""
    value = value.detach().cpu()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def header(kind: str) -> dict[str, Any]:
    """What every file begins with: what it is, the version of its schema, and what wrote it."""
    return {"format": f"fxlrp.{kind}", "version": VERSION, "fxlrp": __version__}


def write(path: str | os.PathLike[str], writers: Mapping[str, Writer]) -> Path:
    """Write a file by the writer for its suffix, completely or not at all; its folder is created if needed.

    Args:
        path: the file; one of this name is replaced.
        writers: by suffix, such as ``".json"``.

    Raises:
        InputError: there is no writer for the suffix, or the file cannot be written.
    """
    path = checked_path(path)
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InputError(f"{path}: the name must end in {', '.join(writers)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    with whole(path, InputError, makes_folder=True) as beside:
        writer(beside)
    return path


def npz_writer(arrays: Mapping[str, np.ndarray[Any, Any]], about: Mapping[str, Any]) -> Writer:
    """Write arrays, and ``about`` as JSON in an array named ``about``."""

    def writer(path: Path) -> None:
        # numpy.savez takes names as keywords, and would have none of them be called "file".
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in {"about": np.array(json.dumps(about)), **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    return writer


def json_writer(content: Mapping[str, Any]) -> Writer:
    """Write numbers as JSON has them: those that are not finite, for which it has no word, are ``null``."""
    return lambda path: path.write_text(json.dumps(plain(content), ensure_ascii=False, allow_nan=False) + "\n")


def frame_writers(frame: Callable[[], Any]) -> dict[str, Writer]:
    """Write a table of :mod:`polars`."""
    def parquet(path: Path) -> None:
        content = io.BytesIO()  # a full disk is an error of polars' own where polars writes to it
        frame().write_parquet(content)
        path.write_bytes(content.getvalue())

    return {".parquet": parquet, ".csv": lambda path: path.write_text(frame().write_csv())}


def polars() -> Any:
    """The module polars.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("polars", "tables")


def plain(value: Any) -> Any:
    """Lists, dicts, texts and numbers in place of tensors and arrays."""
    if isinstance(value, Tensor):
        value = to_array(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
