"""What a table says of many images: means, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval that holds it in 95 % of bootstrap samples of the images.

    Attributes:
        mean: NaN where nothing was measured.
        low: the 2.5th percentile.
        high: the 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    def text(self, scale: float = 100.0, digits: int = 1) -> str:
        """As per cent: ``27.7 (25.1 to 30.4)``."""
        if np.isnan(self.mean):
            return "–"
        return f"{scale * self.mean:.{digits}f} ({scale * self.low:.{digits}f} to {scale * self.high:.{digits}f})"


def estimate(values: Array, seed: int = 0) -> Estimate:
    """The mean of one number an image, with its bootstrap interval (Efron, 1979: percentiles)."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    order = np.random.default_rng(seed)
    means = np.concatenate([
        values[order.integers(0, len(values), (min(100, RESAMPLES - start), len(values)))].mean(axis=1)
        for start in range(0, RESAMPLES, 100)
    ])  # fmt: skip
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


@dataclass(frozen=True)
class Group:
    """The rows of one method and number of levels.

    Attributes:
        method: its name.
        levels: 0: maps as they are.
        index: (images,), of those that were measured.
        columns: by name, (images,), float64.
        curves: by name, (images, steps).
        checkpoints: by module, (images,), the relevance that arrived.
        failed: by image, why.
        unavailable: why it cannot explain this model, where it cannot.
    """

    method: str
    levels: int
    index: npt.NDArray[np.int64]
    columns: dict[str, Array]
    curves: dict[str, Array]
    checkpoints: dict[str, Array] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    unavailable: str | None = None

    def score(self, ties: str) -> Array:
        """(images,), ID."""
        return self.columns[f"insertion_{ties}"] - self.columns[f"deletion_{ties}"]

    def measured(self, ties: str) -> bool:
        """Whether there are scores."""
        return f"insertion_{ties}" in self.columns and len(self.index) > 0


_SCORES = [f"{what}_{tie}" for what in ("insertion", "deletion") for tie in ("strict", "plateau")]
_CURVES = [f"{what}_curve_{tie}" for what in ("insertion", "deletion") for tie in ("strict", "plateau")]
_SMALL = ["index", "method", "levels", "status", "reason", "probability", "tied", "start", "checkpoints", *_SCORES]


def groups(table: Any) -> dict[tuple[str, int], Group]:
    """The rows of a results table by method and levels, in the order in which they first come.

    Args:
        table: a pyarrow table, as :meth:`fxlrp.evaluation.store.Store.read` gives it.
    """
    places: dict[tuple[str, int], list[int]] = {}
    rows = table.select(_SMALL).to_pylist()  # curves are long, and taken as arrays
    for i, row in enumerate(rows):
        places.setdefault((row["method"], row["levels"]), []).append(i)
    return {key: _group(*key, [rows[i] for i in at], at, table) for key, at in places.items()}


def _group(method: str, levels: int, rows: Sequence[Mapping[str, Any]], places: Sequence[int], table: Any) -> Group:
    fine = [row for row in rows if row["status"] == "ok"]
    unavailable = next((row["reason"] for row in rows if row["status"] == "unavailable"), None)
    columns = {
        name: np.asarray([row[name] for row in fine], dtype=np.float64)
        for name in ("probability", "tied", "start", *_SCORES)
        if fine and all(row[name] is not None for row in fine)
    }
    kept = [i for i, row in zip(places, rows, strict=True) if row["status"] == "ok"]
    measured = table.select(_CURVES).take(np.asarray(kept, dtype=np.int64))
    curves = {name: curve for name in _CURVES if (curve := _curve(measured.column(name))) is not None}
    sums: list[dict[str, float]] = [dict(row["checkpoints"] or ()) for row in fine]
    names = list(sums[0]) if sums else []
    checkpoints = {name: np.asarray([entry[name] for entry in sums]) for name in names if all(name in e for e in sums)}
    return Group(
        method, levels, np.asarray([row["index"] for row in fine], dtype=np.int64), columns, curves, checkpoints,
        {row["index"]: row["reason"] for row in rows if row["status"] == "failed"}, unavailable,
    )  # fmt: skip


def _curve(column: Any) -> Array | None:
    """A column of lists as an array (images, steps); ``None`` where some are missing or of another length."""
    whole = column.combine_chunks()
    lengths = set(whole.value_lengths().to_pylist())
    if len(lengths) != 1 or not (steps := lengths.pop()):
        return None
    return np.asarray(whole.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(whole), steps)


def differences(first: Group, second: Group, ties: str) -> Array:
    """By how much the ID of ``first`` is above that of ``second``: one number for each image that both have."""
    _, a, b = np.intersect1d(first.index, second.index, return_indices=True)
    return first.score(ties)[a] - second.score(ties)[b]


def difference(first: Group, second: Group, ties: str, seed: int = 0) -> Estimate:
    """The mean of these :func:`differences`."""
    return estimate(differences(first, second, ties), seed)


def agreement(table: Any) -> tuple[list[str], Array]:
    """The mean rank correlation of each pair of methods: names, and a matrix with NaN where there is none."""
    rows = table.select(["method", "agreement"]).to_pylist()
    names = list(dict.fromkeys(row["method"] for row in rows if row["agreement"]))
    place = {name: i for i, name in enumerate(names)}
    total, count = np.zeros((2, len(names), len(names)))
    for row in rows:
        for other, value in row["agreement"] or ():
            if other in place and row["method"] in place:
                total[place[row["method"]], place[other]] += value
                count[place[row["method"]], place[other]] += 1
    with np.errstate(invalid="ignore"):
        matrix = total / count
    np.fill_diagonal(matrix, 1.0)
    return names, matrix
