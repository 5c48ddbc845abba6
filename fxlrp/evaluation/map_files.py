"""Maps on disk: ``METHOD.h5`` with the maps of all images, as CoRelAy and ViRelAy read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError
from fxlrp.common.extras import require

Maps = dict[str, npt.NDArray[Any]]
"""By method, the map of an image, (height, width); under ``""`` the model's output, (classes,)."""

_COLUMNS = ("attribution", "prediction", "label")


class MapFiles:
    """The maps of a run. Each image is a file of its own until :meth:`collect` puts all into one file per method.

    Args:
        folder: of the files; it is made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting = folder / "waiting"

    def add(self, index: int, maps: Maps, label: int | None) -> None:
        """Keep the maps of an image."""
        self._waiting.mkdir(parents=True, exist_ok=True)
        named = {f"map {name}" if name else "output": value for name, value in maps.items()}
        with whole(self._waiting / f"{index:08d}.npz", EvaluationError) as path:
            np.savez(path, label=np.int64(-1 if label is None else label), **named)  # type: ignore[arg-type]

    def take(self, path: Path) -> None:
        """Move a file of maps here that :meth:`add` wrote into another folder."""
        self._waiting.mkdir(parents=True, exist_ok=True)
        path.rename(self._waiting / path.name)

    def collect(self) -> None:
        """Put the maps that wait into the files of their methods, one method at a time.

        It can be killed and repeated: a map that is collected again takes its own place.
        """
        waiting = {int(path.stem): path for path in sorted(self._waiting.glob("[0-9]*.npz"))}
        names = {name[4:] for path in waiting.values() for name in np.load(path).files if name.startswith("map ")}
        for method in sorted(names):
            fresh = {}
            for index, path in waiting.items():
                with np.load(path) as content:
                    if f"map {method}" in content:
                        fresh[index] = (content[f"map {method}"][None], content["output"], content["label"])
            file_path = self.folder / f"{file_name(method)}.h5"
            _write(file_path, _read(file_path) | fresh)
        shutil.rmtree(self._waiting, ignore_errors=True)

    def drop(self, indices: Collection[int]) -> None:
        """Forget the maps of some images."""
        for index in indices:
            (self._waiting / f"{index:08d}.npz").unlink(missing_ok=True)
        for file_path in self.folder.glob("*.h5") if indices else ():
            _write(file_path, {index: entry for index, entry in _read(file_path).items() if index not in indices})


def file_name(method: str) -> str:
    """A method's name as the name of a file."""
    kept = "".join(c if c.isalnum() or c in "-_+.() " else "_" for c in method).strip()
    return kept or "method"


def _read(file_path: Path) -> dict[int, tuple[Any, ...]]:
    """By image its map (1, height, width), the model's output and its label."""
    if not file_path.exists():
        return {}
    with require("h5py", "evaluate").File(file_path) as file:
        columns = [file[name][:] for name in _COLUMNS]
        return {int(index): tuple(row) for index, *row in zip(file["index"][:], *columns, strict=True)}


def _write(file_path: Path, entries: dict[int, tuple[Any, ...]]) -> None:
    """Write a file anew, in the order of the images; without images there is none."""
    if not entries:
        file_path.unlink(missing_ok=True)
        return
    order = sorted(entries)
    maps, outputs, labels = (np.stack([entries[index][i] for index in order]) for i in range(3))
    with whole(file_path, EvaluationError) as path:
        with require("h5py", "evaluate").File(path, "w") as file:
            file.create_dataset("attribution", data=maps.astype(np.float32), compression="gzip", compression_opts=1)
            file["prediction"] = outputs.astype(np.float32)
            file["label"] = labels.astype(np.int64)
            file["index"] = np.asarray(order, dtype=np.int64)
        with path.open("rb") as written:
            os.fsync(written.fileno())  # only what is on the disk may get its name
