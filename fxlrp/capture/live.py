"""Views of what objects hold beside a ``__dict__``: made once, they show what is there whenever they are read."""

from __future__ import annotations

import types
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

_OF_FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__")


class Slots:
    """What the slots of an object hold."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._names = [name for base in type(value).__mro__ for name in slot_names(base)]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self._value, name, None) for name in self._names)


class Cells:
    """What the function of a closure has from where it was defined."""

    def __init__(self, cells: tuple[Any, ...]) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Any]:
        for cell in self._cells:
            try:
                yield cell.cell_contents
            except ValueError:  # it has none yet
                yield None


class FunctionParts:
    """The code and the default arguments of a function."""

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter(_OF_FUNCTION(self._function))


class Forward:
    """The forward() of a class of torch, which somebody may replace."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield vars(self._kind).get("forward")


def slot_names(kind: type) -> tuple[str, ...]:
    """The slots that a class itself declares."""
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)
