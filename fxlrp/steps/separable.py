"""Pooling and resizing with changed weights: one matrix per axis.

The weights of these operations are the products of one matrix for each axis, which is read
off the operation itself, run along that axis on a unit matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight
from fxlrp.steps.primitives import magnitude, negative, positive, squared


class SeparableOperation(FixedOperation):
    """A fixed operation over the axes behind the channels, whose weights are a product over the axes."""

    @abstractmethod
    def along(self, axis: int) -> LinearOperation:
        """The operation along one of its axes, 0 being the first behind the channels, and idle along the others."""

    def flat(self) -> LinearOperation:
        return ByAxis(self, "ones")

    def magnitude(self) -> LinearOperation:
        return ByAxis(self, "magnitude")

    def squared(self) -> LinearOperation:
        return ByAxis(self, "squared")


@dataclass(frozen=True)
class ByAxis(LinearOperation):
    """``operation`` with its weights changed.

    To ``"ones"``, ``"squared"``, ``"magnitude"``, ``"positive"``, ``"negative"``, or ``"same"``: not changed.
    """

    operation: SeparableOperation
    change: str

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return by_axis(x, self.operation, self.change)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return by_axis_transpose(s, x, self.operation, self.change)

    def changed(self, weight: Weight, change: Callable[[Tensor], Tensor]) -> tuple[LinearOperation, Weight] | None:
        name = type(self.operation).__name__
        raise RuleError(f"the weights of {name} are changed already ({self.change}): change them once")


@primitive
def by_axis(x: Tensor, operation: SeparableOperation, change: str) -> Tensor:
    """``x`` through the changed weights of ``operation``."""
    return _through(x, _products(operation, x, change))


@primitive(linear="first")
def by_axis_transpose(s: Tensor, x: Tensor, operation: SeparableOperation, change: str) -> Tensor:
    """The transpose of :func:`by_axis`, in the shape of ``x``."""
    return _through(s, [[matrix.mT for matrix in matrices] for matrices in _products(operation, x, change)])


def _through(x: Tensor, products: list[list[Tensor]]) -> Tensor:
    total = None
    for matrices in products:
        value = x
        for axis, matrix in enumerate(matrices):
            value = torch.tensordot(value, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
        total = value if total is None else total + value
    assert total is not None, "a change that leaves no weights makes no operation"
    return total


def _products(operation: SeparableOperation, x: Tensor, change: str) -> list[list[Tensor]]:
    """The changed weights as a sum of products of one matrix (out, in) per axis."""
    matrices = [_matrix(operation, x, axis) for axis in range(x.dim() - 2)]
    if change == "same":
        return [matrices]
    if change == "ones":
        return [[(matrix != 0).to(x.dtype) for matrix in matrices]]
    if change in ("squared", "magnitude"):  # of a product it is the product of those of its factors
        by_element = squared if change == "squared" else magnitude
        return [[by_element(matrix) for matrix in matrices]]
    # A product is positive where an even number of its factors is negative.
    wanted = 1 if change == "positive" else -1
    signs = [s for s in product((1, -1), repeat=len(matrices)) if prod(s) == wanted]
    return [
        [(positive if sign > 0 else negative)(matrix) for sign, matrix in zip(s, matrices, strict=True)] for s in signs
    ]


def _matrix(operation: SeparableOperation, x: Tensor, axis: int) -> Tensor:
    """The weights along an axis, (out, in)."""
    size = x.shape[2 + axis]
    shape = [size, 1, *[1] * (x.dim() - 2)]
    shape[2 + axis] = size
    units = torch.eye(size, dtype=x.dtype, device=x.device).reshape(shape)
    return operation.along(axis).apply(units, None).reshape(size, -1).T
