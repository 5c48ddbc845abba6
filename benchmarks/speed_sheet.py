"""The rows of one device, by model, batch and method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.report import grouped
from benchmarks.speed_methods import METHODS
from benchmarks.speed_models import MODELS
from benchmarks.table import Row

EAGER = ("fxlrp eager", "fxlrp channels-last")
COMPILED = ("fxlrp inductor", "fxlrp cudagraphs")
"""The default preset, by the way it runs."""


class Sheet:
    """Rows of one device, with what tables ask of them.

    Args:
        name: of the device.
        rows: its rows.
    """

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name = name
        self.rows = rows
        self.models = _in_order((row["model"] for row in rows), MODELS)
        self.batches = sorted({int(row["batch"]) for row in rows})
        self._rows = {(row["model"], int(row["batch"]), row["method"]): row for row in rows}

    def get(self, model: str, batch: int, method: str) -> Row | None:
        return self._rows.get((model, batch, method))

    def ok(self, model: str, batch: int, *, kind: str) -> list[Row]:
        """What could be measured of one kind of methods."""
        return self._good(model, batch, (name for name, method in METHODS.items() if method.kind == kind))

    def explained(self, model: str, batch: int) -> list[Row]:
        """All explanations that could be measured."""
        return [*self.ok(model, batch, kind="fxlrp"), *self.ok(model, batch, kind="peer")]

    def best(self, model: str, batch: int, methods: Iterable[str]) -> Row | None:
        """The fastest of these methods."""
        return fastest(self._good(model, batch, methods))

    def formats(self, batch: int) -> dict[str, list[str]]:
        """By memory format the methods that use it."""
        used = {row["method"]: row["memory_format"] for row in self.rows
                if int(row["batch"]) == batch and row["memory_format"]}  # fmt: skip
        return grouped(_in_order(used, METHODS), used.__getitem__)

    def _good(self, model: str, batch: int, methods: Iterable[str]) -> list[Row]:
        found = (self.get(model, batch, method) for method in methods)
        return [row for row in found if row is not None and row["status"] == "ok"]


def sheets(rows: Iterable[Row]) -> list[Sheet]:
    """A sheet a device."""
    return [Sheet(name, those) for name, those in grouped(rows, lambda row: row["device_name"]).items()]


def number(row: Row, column: str) -> float:
    return float(row[column] or "nan")


def fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: number(row, "ratio"), default=None)


def quotient(row: Row | None, other: Row | None) -> float | None:
    """The time of one over that of another, each a multiple of its own run's autograd; ``None`` where one failed."""
    if row is None or other is None or row["status"] != "ok" or other["status"] != "ok":
        return None
    return number(row, "ratio") / number(other, "ratio")


def told_quotient(row: Row | None, other: Row | None) -> str:
    """A quotient as tables tell it: starred where the two are of different runs."""
    found = quotient(row, other)
    if found is None or row is None or other is None:
        return ""
    return f"{found:.2f}" if row["run"] == other["run"] else f"{found:.2f}\\*"


def _in_order(found: Iterable[str], order: Iterable[str]) -> list[str]:
    """Without repetitions; what ``order`` does not have comes last."""
    places = {name: place for place, name in enumerate(order)}
    return sorted(dict.fromkeys(found), key=lambda name: places.get(name, len(places)))
