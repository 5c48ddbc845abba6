"""Results on disk: an image at a time, whole or not at all, nothing twice.

A worker writes what it found for an image as one small Parquet file, whose appearance under its final name is the
moment at which the image is done; maps go into a file beside it just before. When a run ends the small files are
merged, in the order of the images, into ``results.parquet`` (and ``maps/*.h5``), which again appear whole. Killed
at any moment, what is there is what was finished, and the next run does the rest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError
from fxlrp.common.extras import require

Row = dict[str, Any]
Maps = dict[str, npt.NDArray[Any]]
"""By method, the map of an image, (height, width); under ``""`` the model's output, (classes,)."""

RESULTS = "results.parquet"
COSTS = "costs.json"
RANDOMIZED = "randomized.json"
_PARTS, _MAPS, _META = "parts", "maps", "run.json"


def schema() -> Any:
    """The columns of the results: a row an image, method and number of levels."""
    pa = require("pyarrow", "evaluate")
    number, curve = pa.float64(), pa.list_(pa.float32())
    measured = [
        pa.field(f"{what}_{tie}", kind)
        for tie in ("strict", "plateau")
        for what, kind in (("insertion", number), ("deletion", number), ("insertion_curve", curve),
                           ("deletion_curve", curve))
    ]  # fmt: skip
    return pa.schema(
        [
            pa.field("index", pa.int64()),
            pa.field("image", pa.string()),
            pa.field("label", pa.int64()),
            pa.field("predicted", pa.int64()),
            pa.field("target", pa.int64()),
            pa.field("probability", number),
            pa.field("method", pa.string()),
            pa.field("levels", pa.int32()),
            pa.field("status", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("tied", number),
            pa.field("start", number),
            pa.field("checkpoints", pa.map_(pa.string(), number)),
            pa.field("agreement", pa.map_(pa.string(), pa.float32())),
            *measured,
        ]
    )


class Store:
    """The folder of a run's results.

    Args:
        folder: made where it is not there.
        methods: names of methods and levels in the order in which rows are kept.
    """

    def __init__(self, folder: Path, methods: Sequence[tuple[str, int]]) -> None:
        self.folder = folder
        self._order = {method: i for i, method in enumerate(methods)}

    @property
    def results(self) -> Path:
        """The merged results."""
        return self.folder / RESULTS

    def open(self, fingerprint: str, about: Mapping[str, Any]) -> None:
        """Take the folder for a run, or take one up again.

        Raises:
            EvaluationError: it holds results of another configuration, or cannot be written to.
        """
        try:
            (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"{self.folder} cannot be used for results: {error.strerror}") from error
        meta = self.folder / _META
        if meta.exists():
            known = json.loads(meta.read_text(encoding="utf-8"))
            if known.get("fingerprint") != fingerprint:
                raise EvaluationError(
                    f"{self.folder} holds results of another configuration: give another folder (run.out), or "
                    "remove this one"
                )
            return
        with whole(meta) as path:
            path.write_text(json.dumps({"fingerprint": fingerprint, **about}, indent=2) + "\n", encoding="utf-8")

    def done(self) -> set[int]:
        """The images whose results are there."""
        merged = set() if not self.results.exists() else set(self.read(["index"]).column("index").to_pylist())
        return merged | {int(path.stem) for path in self._parts()}

    def forget_failed(self) -> int:
        """Drop the images of which something failed, so that they are tried again; how many there were."""
        self.merge()
        failed = self.failed() if self.results.exists() else set()
        if failed:
            pa, pc = require("pyarrow", "evaluate"), require("pyarrow.compute", "evaluate")
            table = self.read()
            kept = pc.invert(pc.is_in(table["index"], pa.array(sorted(failed), pa.int64())))
            self._write(self.results, table.filter(kept))
            self._merge_maps(drop=failed)
        return len(failed)

    def failed(self) -> set[int]:
        """The images among the merged results of which something failed."""
        table = self.read(["index", "status"]).to_pylist()
        return {row["index"] for row in table if row["status"] == "failed"}

    def add(self, index: int, rows: Sequence[Row], maps: Maps | None = None, label: int | None = None) -> None:
        """Keep what was found for an image: from here on it is done."""
        pa = require("pyarrow", "evaluate")
        place = self.folder / _PARTS / f"{index:08d}.parquet"
        if maps is not None:
            with whole(place.with_suffix(".npz")) as path:
                named = {f"map {name}" if name else "output": value for name, value in maps.items()}
                np.savez(path, label=np.int64(-1 if label is None else label), **named)  # type: ignore[arg-type]
        self._write(place, pa.Table.from_pylist(list(rows), schema()))

    def merge(self) -> None:
        """Merge what the workers wrote."""
        parts = self._parts()
        if not parts:
            return
        pa = require("pyarrow", "evaluate")
        tables = [self._read(path) for path in parts]
        if self.results.exists():
            known = self.read()
            old = set(known.column("index").to_pylist())
            # A merge that was cut off after its result appeared: these parts are in it.
            tables = [known, *(table for path, table in zip(parts, tables, strict=True) if int(path.stem) not in old)]
        self._merge_maps()
        rows = pa.concat_tables(tables)
        keys = zip(rows["index"].to_pylist(), rows["method"].to_pylist(), rows["levels"].to_pylist(), strict=True)
        ranks = [(index, self._order.get((method, levels), len(self._order))) for index, method, levels in keys]
        self._write(self.results, rows.take(sorted(range(len(ranks)), key=ranks.__getitem__)))
        for path in parts:
            path.with_suffix(".npz").unlink(missing_ok=True)
            path.unlink()

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """The merged results, a pyarrow table.

        Raises:
            EvaluationError: there are none, or they cannot be read.
        """
        if not self.results.exists():
            raise EvaluationError(f"{self.folder} holds no results ({RESULTS})")
        return self._read(self.results, columns)

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.folder, self.folder / _PARTS, self.folder / _MAPS):
            for path in folder.glob(".*-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _parts(self) -> list[Path]:
        return sorted((self.folder / _PARTS).glob("[0-9]*.parquet"))

    def _read(self, path: Path, columns: Sequence[str] | None = None) -> Any:
        pq = require("pyarrow.parquet", "evaluate")
        try:
            return pq.read_table(path, columns=None if columns is None else list(columns))
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path} cannot be read: {error}") from error

    def _write(self, place: Path, table: Any) -> None:
        pq = require("pyarrow.parquet", "evaluate")
        with whole(place) as path:
            pq.write_table(table, path, compression="zstd")
            _flush(path)

    # Maps -----------------------------------------------------------------------------------------

    def _merge_maps(self, drop: Iterable[int] = ()) -> None:
        """Put the maps of the parts into ``maps/METHOD.h5``, as CoRelAy and ViRelAy read them; a method at a time."""
        parts = {int(path.stem): path.with_suffix(".npz") for path in self._parts()}
        parts = {index: path for index, path in parts.items() if path.exists()}
        dropped = set(drop)
        if not parts and not dropped:
            return
        names = {name[4:] for path in parts.values() for name in np.load(path).files if name.startswith("map ")}
        places = {file_name(name): name for name in names}
        places |= {path.stem: path.stem for path in (self.folder / _MAPS).glob("*.h5") if path.stem not in places}
        (self.folder / _MAPS).mkdir(exist_ok=True)
        for place, name in sorted(places.items()):
            entries = {}
            for index, path in parts.items():
                with np.load(path) as entry:
                    if f"map {name}" in entry:
                        entries[index] = (entry[f"map {name}"], entry["output"], entry["label"])
            self._merge_h5(self.folder / _MAPS / f"{place}.h5", entries, dropped)

    def _merge_h5(self, place: Path, entries: dict[int, tuple[Any, Any, Any]], dropped: set[int]) -> None:
        h5py = require("h5py", "evaluate")
        if place.exists():
            with h5py.File(place, "r") as file:
                known = zip(file["index"][:], file["attribution"][:], file["prediction"][:], file["label"][:],
                            strict=True)  # fmt: skip
                old = {int(i): (a[0], p, label) for i, a, p, label in known if int(i) not in dropped}
            entries = {**old, **entries}
        order = sorted(entries)
        if not order:
            place.unlink(missing_ok=True)
            return
        with whole(place) as path:
            with h5py.File(path, "w") as file:
                maps = np.stack([entries[index][0] for index in order])[:, None].astype(np.float32)
                file.create_dataset("attribution", data=maps, compression="gzip", compression_opts=1)
                file["prediction"] = np.stack([entries[index][1] for index in order]).astype(np.float32)
                file["label"] = np.asarray([entries[index][2] for index in order], dtype=np.int64)
                file["index"] = np.asarray(order, dtype=np.int64)
            _flush(path)


def file_name(name: str) -> str:
    """A method's name as the name of a file."""
    kept = "".join(c if c.isalnum() or c in "-_+.() " else "_" for c in name).strip()
    return kept or "method"


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: only then may it get its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
