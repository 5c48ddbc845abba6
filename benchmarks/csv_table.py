"""Rows in a CSV file that is complete at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

Key = tuple[str, ...]


class CsvTable:
    """Rows by key, in memory and in a file; cells are text, of which an empty one says that there is no value.

    Args:
        path: the file; it may not exist yet.
        key: the columns that tell rows apart; a file may lack some, which are empty then.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, tuple(key)
        self.rows: dict[Key, dict[str, str]] = {}
        if path.exists():
            for row in pl.read_csv(path, infer_schema=False).fill_null("").iter_rows(named=True):
                self.rows[self.key_of(row)] = row

    def key_of(self, row: dict[str, Any]) -> Key:
        return tuple(str(row.get(column, "")) for column in self.key)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, or replace those with the same key, and write the file."""
        texts = [{column: _text(value) for column, value in row.items()} for row in rows]
        self.rows |= {self.key_of(row): row for row in texts}
        self._write()

    def drop(self, keys: Iterable[Key]) -> None:
        """Take rows out, and write the file."""
        gone = self.rows.keys() & set(keys)
        if gone:
            self.rows = {key: row for key, row in self.rows.items() if key not in gone}
            self._write()

    def frame(self, *, integers: Sequence[str] = (), numbers: Sequence[str] = (), texts: Sequence[str] = ()) -> Any:
        """The rows as a frame that has at least these columns; a missing number is ``None``, a missing text ``""``."""
        columns = dict.fromkeys([*self.key, *(name for row in self.rows.values() for name in row)])
        columns |= dict.fromkeys([*integers, *numbers, *texts])
        return _strings(self.rows.values(), columns).with_columns(
            *(pl.col(name).cast(pl.Int64 if name in integers else pl.Float64) if name in {*integers, *numbers}
              else pl.col(name).fill_null("") for name in columns)
        )  # fmt: skip

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        _strings(self.rows.values(), [name for row in self.rows.values() for name in row]).write_csv(partial)
        partial.replace(self.path)


def _strings(rows: Iterable[dict[str, str]], columns: Iterable[str]) -> pl.DataFrame:
    schema = dict.fromkeys(columns, pl.String)
    return pl.DataFrame([{name: row.get(name) or None for name in schema} for row in rows], schema=schema)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
