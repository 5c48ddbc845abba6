"""A ledger as arrays, as a table, and as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fxlrp.results.files import frame_writers, header, json_writer, npz_writer, polars, to_array, write

if TYPE_CHECKING:
    from fxlrp.results.ledger import Ledger

_OF_NODES = {"received": "received", "handed_on": "handed_on", "absorbed": "absorbed", "rescaled": "rescaled",
             "node_error": "error"}  # fmt: skip
"""The arrays (nodes, batch), by name, and the attribute of a row."""


def arrays(ledger: Ledger) -> dict[str, np.ndarray[Any, Any]]:
    """See :meth:`Ledger.to_numpy`."""
    items = len(ledger.start)
    found = {"start": ledger.start, "relevance": ledger.relevance, "error": ledger.error,
             **{f"absorbed.{reason}": amount for reason, amount in ledger.absorbed.items()}}  # fmt: skip
    of_nodes = {name: np.array([to_array(getattr(row, field)) for row in ledger.rows]).reshape(-1, items)
                for name, field in _OF_NODES.items()}  # fmt: skip
    return {**{name: to_array(value) for name, value in found.items()},
            "node": np.array([row.node for row in ledger.rows], dtype=str), **of_nodes}  # fmt: skip


def frame(ledger: Ledger) -> Any:
    """See :meth:`Ledger.to_frame`."""
    items, nodes = len(ledger.start), len(ledger.rows)
    texts = {name: np.repeat([getattr(row, name) for row in ledger.rows], items)
             for name in ("node", "path", "kind", "rule")}  # fmt: skip
    amounts = {name: to_array_of(ledger, name) for name in ("received", "handed_on", "absorbed", "rescaled", "error")}
    reasons = np.repeat([row.reason for row in ledger.rows], items)
    return polars().DataFrame({**texts, "item": np.tile(np.arange(items), nodes), **amounts, "reason": reasons})


def to_array_of(ledger: Ledger, field: str) -> np.ndarray[Any, Any]:
    """An amount of all rows and items, one after the other."""
    return np.concatenate([np.zeros(0), *(to_array(getattr(row, field)) for row in ledger.rows)])


def save(ledger: Ledger, path: str | os.PathLike[str]) -> Path:
    """See :meth:`Ledger.save`."""
    rows = [
        {"node": row.node, "path": row.path, "kind": row.kind, "rule": row.rule, "received": row.received,
         "to": row.to, "handed_on": row.handed_on, "absorbed": row.absorbed, "by_reason": row.by_reason,
         "rescaled": row.rescaled, "error": row.error}
        for row in ledger.rows
    ]  # fmt: skip
    content = {**header("ledger"), "start": ledger.start, "relevance": ledger.relevance, "error": ledger.error,
               "absorbed": ledger.absorbed, "rows": rows}  # fmt: skip
    return write(path, {
        ".json": json_writer(content), ".npz": lambda beside: npz_writer(arrays(ledger), header("ledger"))(beside),
        **frame_writers(lambda: frame(ledger)),
    })  # fmt: skip
