"""Rows in a CSV file that is complete at any moment."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

Key = tuple[str, ...]


class CsvTable:
    """Rows by key, in memory and in a file; cells are text, or ``None``, an empty one, where there is no value.

    Args:
        path: the file; it may not exist yet.
        key: the columns that tell rows apart; a file may lack some, which are empty then.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, tuple(key)
        read = pl.read_csv(path, infer_schema=False).rows(named=True) if path.exists() else []
        self.rows: dict[Key, dict[str, str | None]] = {self.key_of(row): row for row in read}

    def key_of(self, row: Mapping[str, Any]) -> Key:
        return tuple(_text(row.get(column)) or "" for column in self.key)

    def add(self, rows: Iterable[Mapping[str, Any]], instead_of: Iterable[Key] = ()) -> None:
        """Add rows, or replace those with the same key and some others, and write the file."""
        for key in instead_of:
            self.rows.pop(key, None)
        self.rows |= {self.key_of(row): {name: _text(value) for name, value in row.items()} for row in rows}
        partial = self.path.with_suffix(".partial")
        self._texts().write_csv(partial)
        partial.replace(self.path)

    def frame(self, types: dict[str, Any]) -> pl.DataFrame:
        """The rows with at least these columns, others are text; a missing text is "", a missing number ``None``."""
        return self._texts([*self.key, *types]).cast(types).with_columns(pl.col(pl.String).fill_null(""))

    def _texts(self, more: Iterable[str] = ()) -> pl.DataFrame:
        schema = dict.fromkeys([*(name for row in self.rows.values() for name in row), *more], pl.String)
        return pl.DataFrame([*self.rows.values()], schema)


def _text(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else None if value in (None, "") else str(value)
