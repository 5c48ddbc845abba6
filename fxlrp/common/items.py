"""The items of an input: which of its axes tells them apart, or that the whole input is one item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxlrp.common.errors import InputError


@dataclass(frozen=True)
class Items:
    """What ``compile(batch=…)`` says.

    Attributes:
        axis: of inputs that are not named, the axis of the batch; an input of fewer axes has it in its last. ``None``:
            all inputs together are one item.
        named: the axis of the batch by the name of an input.
    """

    axis: int | None = 0
    named: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, batch: int | Mapping[str, int] | None) -> Items:
        """What ``batch`` means.

        Raises:
            InputError: it is no axis, none by name, and not ``None``.
        """
        named = dict(batch) if isinstance(batch, Mapping) else {}
        axes = list(named.values()) if isinstance(batch, Mapping) else [] if batch is None else [batch]
        if not all(isinstance(axis, int) and not isinstance(axis, bool) and axis >= 0 for axis in axes):
            raise InputError(
                f"batch={batch!r}: give the axis that tells the items of a batch apart (0, or 1 for sequence-first "
                "inputs), a dict of axes by the name of the input, or None where the whole input is one item"
            )
        return cls(0, tuple(sorted(named.items()))) if isinstance(batch, Mapping) else cls(batch)

    @property
    def told(self) -> int | dict[str, int] | None:
        """As ``batch`` says it."""
        return dict(self.named) if self.named else self.axis

    @property
    def whole(self) -> bool:
        """Whether all inputs together are one item."""
        return self.axis is None

    @property
    def in_front(self) -> bool:
        """Whether the first axis of every input is the batch."""
        return self == FRONT

    def check(self, names: Sequence[str]) -> None:
        """Raise where the axis of an input is told that is none.

        Raises:
            InputError: so it is.
        """
        unknown = [name for name, _ in self.named if name not in names]
        if unknown:
            raise InputError(f"batch= names {unknown[0]!r}, and the inputs are {', '.join(names)}")

    def axis_of(self, name: str, rank: int | None = None) -> int:
        """The axis of the batch in an input of so many axes; ``None``: of any number."""
        assert self.axis is not None
        axis = dict(self.named).get(name, self.axis)
        return axis if rank is None else min(axis, max(rank, 1) - 1)

    def count(self, names: Sequence[str], tensors: Sequence[Tensor]) -> int:
        """How many items there are in checked inputs."""
        return 1 if self.whole else tensors[0].shape[self.axis_of(names[0], tensors[0].dim())]

    def picked(self, names: Sequence[str], tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
        """The inputs of the items that ``index`` counts, in its order."""
        return [
            tensor.index_select(self.axis_of(name, tensor.dim()), index.to(tensor.device))
            for name, tensor in zip(names, tensors, strict=True)
        ]


FRONT = Items()
"""The first axis of every input is the batch."""
