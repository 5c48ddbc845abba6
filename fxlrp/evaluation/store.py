"""Results on disk: one Parquet file per image, or per passage, which appears whole or not at all.

``results.parquet`` is a folder; its files are one data set for pyarrow, polars and pandas. A process writes what it
measured of an image as one file. When that file appears under its final name, the image is done; its maps are in a
file of their own by then. After a process was killed, the next run does the images that have no file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError
from fxlrp.common.extras import require
from fxlrp.common.file_lock import FileLock, lock_file
from fxlrp.evaluation.map_files import MapFiles, Maps

Row = dict[str, Any]

RESULTS = "results.parquet"
COSTS = "costs.json"
RANDOMIZED = "randomized.json"
PROPERTIES = "properties.json"
_META = "run.json"


def schema() -> Any:
    """The columns of results on images: one row per image, method and number of levels."""
    pa = require("pyarrow", "evaluate")
    number, curve = pa.float64(), pa.list_(pa.float32())
    measured = {"insertion": number, "deletion": number, "insertion_curve": curve, "deletion_curve": curve}
    return pa.schema({
        "index": pa.int64(), "image": pa.string(), "label": pa.int64(), "predicted": pa.int64(), "target": pa.int64(),
        "probability": number, "method": pa.string(), "levels": pa.int32(), "status": pa.string(),
        "reason": pa.string(), "tied": number, "start": number, "checkpoints": pa.map_(pa.string(), number),
        "agreement": pa.map_(pa.string(), pa.float32()),
        **{f"{name}_{tie}": kind for tie in ("strict", "plateau") for name, kind in measured.items()},
    })  # fmt: skip


def passage_schema() -> Any:
    """The columns of results on passages: one row per passage and method."""
    pa = require("pyarrow", "evaluate")
    number = pa.float64()
    numbers = pa.map_(pa.string(), number)
    return pa.schema({
        "index": pa.int64(), "subject": pa.string(), "text": pa.string(), "label": pa.int64(), "target": pa.int64(),
        "answer": pa.string(), "method": pa.string(), "status": pa.string(), "reason": pa.string(), "start": number,
        "tokens": pa.list_(pa.int64()), "values": pa.list_(number), "correlation": number, "linear": number,
        "areas": numbers, "truth": numbers, "magnitudes": numbers, "heads": numbers,
    })  # fmt: skip


class Store:
    """The folder of a run's results.

    Args:
        folder: is made by :meth:`open`.
        passages: whether the results are on passages, and else on images.
    """

    def __init__(self, folder: Path, *, passages: bool = False) -> None:
        self.folder = folder
        self._schema = passage_schema if passages else schema
        self.maps = MapFiles(folder / "maps")
        self._lock: FileLock | None = None

    @property
    def results(self) -> Path:
        """The folder with one file per image."""
        return self.folder / RESULTS

    def open(self, fingerprint: str, description: Mapping[str, Any]) -> None:
        """Take the folder for a run, or take up the run that it holds.

        Raises:
            EvaluationError: it holds results of another configuration, another run is at work in it, or it cannot
                be written to.
        """
        meta = self.folder / _META
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock_file(self.folder))
            if not self._lock.take():
                self._lock = None
                raise EvaluationError(
                    f"another evaluation is at work in {self.folder}: wait for it, or give another folder (run.out)"
                )
            if meta.exists() and json.loads(meta.read_text(encoding="utf-8")).get("fingerprint") != fingerprint:
                raise EvaluationError(
                    f"{self.folder} holds results of another configuration: give another folder (run.out), or "
                    "remove this one"
                )
            self._convert()
            self.results.mkdir(exist_ok=True)
            for folder in (self.folder, self.results, self.maps.folder):
                for unfinished in folder.glob(".*-*"):  # by a process that was killed
                    shutil.rmtree(unfinished, ignore_errors=True)
            if not meta.exists():
                self.write_json(_META, {"fingerprint": fingerprint, **description})
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{self.folder} cannot be used for results: {error}") from error

    def close(self) -> None:
        """Let another run take the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def done(self) -> set[int]:
        """The images whose results are there."""
        return {int(path.stem) for path in self.results.glob("[0-9]*.parquet")}

    def failed(self) -> set[int]:
        """The images of which something failed."""
        pc = require("pyarrow.compute", "evaluate")
        return set(self.read(["index"], pc.field("status") == "failed")["index"].to_pylist())

    def forget_failed(self) -> None:
        """Drop the images of which something failed, so that they are tried again."""
        failed = self.failed() if self.done() else set()
        for index in failed:
            self._file(index).unlink()
        self.maps.drop(failed)

    def add(self, index: int, rows: Sequence[Row], maps: Maps | None = None, label: int | None = None) -> None:
        """Keep what was measured of an image: from here on it is done."""
        pa = require("pyarrow", "evaluate")
        if maps is not None:
            self.maps.add(index, maps, label)
        self._write(self._file(index), pa.Table.from_pylist(list(rows), self._schema()))

    def read(self, columns: Collection[str] | None = None, where: Any = None) -> Any:
        """The results, in the order of the images.

        Args:
            columns: their names; ``None``: all.
            where: a filter of pyarrow.

        Returns:
            A pyarrow table.

        Raises:
            EvaluationError: there are none, or they cannot be read.
        """
        dataset = require("pyarrow.dataset", "evaluate")
        try:
            self._convert()
            files = [str(self._file(index)) for index in sorted(self.done())]
            if files:
                images = dataset.dataset(files, self._schema(), format="parquet")
                return images.to_table(columns=None if columns is None else list(columns), filter=where)
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{self.results} cannot be read: {error}") from error
        raise EvaluationError(f"{self.folder} holds no results ({RESULTS}): run fxlrp evaluate first")

    def read_json(self, name: str) -> dict[str, Any]:
        """What a file beside the results holds; nothing where there is none."""
        path = self.folder / name
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file beside the results."""
        with whole(self.folder / name, EvaluationError) as path:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _file(self, index: int) -> Path:
        return self.results / f"{index:08d}.parquet"

    def _write(self, file: Path, table: Any) -> None:
        with whole(file, EvaluationError) as path:
            require("pyarrow.parquet", "evaluate").write_table(table, path, compression="zstd")
            with path.open("rb") as written:
                os.fsync(written.fileno())  # only what is on the disk may get its name

    def _convert(self) -> None:
        """Bring earlier results into this layout: once a run ended, all images were merged into one file.

        Every step can be repeated, so that a conversion that was killed goes on.
        """
        merged, parts = self.folder / "merged.parquet", self.folder / "parts"
        if self.results.is_file():
            self.results.rename(merged)
        if not (merged.exists() or parts.exists()):
            return
        self.results.mkdir(exist_ok=True)
        if merged.exists():
            pc, pq = require("pyarrow.compute", "evaluate"), require("pyarrow.parquet", "evaluate")
            table = pq.read_table(merged)
            for index in table["index"].unique().to_pylist():
                self._write(self._file(index), table.filter(pc.field("index") == index))
            merged.unlink()
        for path in parts.glob("[0-9]*.parquet"):
            path.rename(self.results / path.name)
        for path in parts.glob("[0-9]*.npz"):
            self.maps.take(path)
        shutil.rmtree(parts, ignore_errors=True)
