"""The sweep's rows, in a CSV file that is complete at any moment."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COVERAGE = (
    "zoo", "name", "group", "dtype", "status", "stage", "reason", "capture", "joins_identity", "joins_projection",
    "joins_merge", "compile_s", "node_error", "worst_node", "total_error", "absorbed", "outputs", "finite",
    "parameters", "peak_mb", "made", "date",
)  # fmt: skip
PEER_COVERAGE = (
    "name", "group", "peer", "status", "stage", "reason", "ratio", "ratios", "within_1_percent", "finite", "start",
    "how", "seconds", "parameters", "peak_mb", "made", "date",
)  # fmt: skip

Row = dict[str, str]
Key = tuple[str, ...]


class Table:
    """Rows by key, in memory and in a file.

    Args:
        path: the file; it may not exist yet.
        columns: its columns.
        key: those that tell the rows apart.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.key = tuple(key)
        self.rows: dict[Key, Row] = {}
        if path.exists():
            self._read()

    def add(self, row: dict[str, Any]) -> Row:
        """Append a row, in one write."""
        told = {column: _cell(row.get(column)) for column in self.columns}
        self.rows[self.key_of(told)] = told
        new = not self.path.exists()
        with self.path.open("ab", buffering=0) as file:
            file.write(self._lines([told], header=new))
            os.fsync(file.fileno())
        return told

    def drop(self, keys: Iterable[Key]) -> None:
        """Take rows out."""
        gone = self.rows.keys() & set(keys)
        if not gone:
            return
        self.rows = {key: row for key, row in self.rows.items() if key not in gone}
        self._write()

    def key_of(self, row: dict[str, Any]) -> Key:
        return tuple(str(row[column]) for column in self.key)

    def _read(self) -> None:
        text = self.path.read_text()
        reader = csv.DictReader(io.StringIO(text))
        if text and tuple(reader.fieldnames or ()) != self.columns:
            raise SystemExit(f"{self.path} has other columns than this sweep: move it away")
        for row in reader:
            # A sweep that was killed may have left half a line.
            if None not in row.values() and None not in row:
                self.rows[self.key_of(row)] = row
        if not text.endswith("\n"):
            self._write()

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(self._lines(self.rows.values(), header=True))
        partial.replace(self.path)

    def _lines(self, rows: Iterable[Row], *, header: bool) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
