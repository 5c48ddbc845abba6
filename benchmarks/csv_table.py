"""Rows in a CSV file that is complete at any moment."""

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
        read = pl.read_csv(path, infer_schema=False).fill_null("").iter_rows(named=True) if path.exists() else ()
        self.rows: dict[Key, dict[str, str]] = {self.key_of(row): row for row in read}

    def key_of(self, row: dict[str, Any]) -> Key:
        return tuple(str(row.get(column, "")) for column in self.key)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, or replace those with the same key, and write the file."""
        texts = [{column: _text(value) for column, value in row.items()} for row in rows]
        self.rows |= {self.key_of(row): row for row in texts}
        partial = self.path.with_suffix(".partial")
        self._strings(name for row in self.rows.values() for name in row).write_csv(partial)
        partial.replace(self.path)

    def drop(self, keys: Iterable[Key]) -> None:
        """Take rows out; the file follows when rows are added."""
        for key in set(keys) & self.rows.keys():
            del self.rows[key]

    def frame(self, integers: Sequence[str] = (), numbers: Sequence[str] = (), texts: Sequence[str] = ()) -> Any:
        """The rows with at least these columns; a missing number is ``None``, a missing text ``""``."""
        columns = [*self.key, *(name for row in self.rows.values() for name in row), *integers, *numbers, *texts]
        types = dict.fromkeys(integers, pl.Int64) | dict.fromkeys(numbers, pl.Float64)
        return self._strings(columns).with_columns(
            pl.col(name).cast(types[name]) if name in types else pl.col(name).fill_null("") for name in set(columns)
        )

    def _strings(self, columns: Iterable[str]) -> pl.DataFrame:
        schema = dict.fromkeys(columns, pl.String)
        return pl.DataFrame([{name: row.get(name) or None for name in schema} for row in self.rows.values()], schema)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
