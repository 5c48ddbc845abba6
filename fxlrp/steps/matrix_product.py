"""Products of two tensors, each linear in one factor while the other is held constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight


@primitive(linear="first")
def matmul_transpose(s: Tensor, weight: Tensor, x: Tensor, left: bool) -> Tensor:
    """The transpose of a product with a constant matrix, in the shape of ``x``."""
    if weight.dim() == 1:  # a vector drops an axis
        c = weight.unsqueeze(-1) * s.unsqueeze(-2) if left and x.dim() > 1 else s.unsqueeze(-1) * weight
        return c.sum_to_size(x.shape)
    if x.dim() == 1:  # and so does one of the signal
        c = weight.mT @ s.unsqueeze(-1) if left else weight @ s.unsqueeze(-1)
        return c.squeeze(-1).sum_to_size(x.shape)
    c = torch.matmul(weight.mT, s) if left else torch.matmul(s, weight.mT)
    return c.sum_to_size(x.shape)


@dataclass(frozen=True)
class MatrixProduct(LinearOperation):
    """``x @ weight``, or ``weight @ x`` where ``left``, by a constant matrix."""

    left: bool = False

    channel_axis = -1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return torch.matmul(weight, x) if self.left else torch.matmul(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return matmul_transpose(s, weight, x, self.left)


@primitive
def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows times the matrix of their group: those up to ``ends[0]`` by the first, and so on."""
    result, start = x.new_zeros(x.shape[0], weight.shape[-1]), 0
    for matrix, end in zip(weight, ends.tolist(), strict=True):
        result[start:end] = x[start:end] @ matrix
        start = end
    return result


@primitive(linear="first")
def grouped_transpose(s: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The transpose of :func:`grouped_product`."""
    return grouped_product(s, weight.mT, ends)


@dataclass(frozen=True)
class GroupedProduct(LinearOperation):
    """Rows in groups, one behind the other, each group times a matrix of its own: the experts of a mixture."""

    ends: Tensor

    channel_axis = -1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return grouped_product(x, weight, self.ends)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return grouped_transpose(s, weight, self.ends)


@primitive(linear="first")
def einsum_transpose(s: Tensor, weight: Tensor | None, x: Tensor, equation: str, index: int) -> Tensor:
    """The transpose of an Einstein sum in its operand ``index``, in the shape of ``x``."""
    inputs, result = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    others = [term for i, term in enumerate(terms) if i != index]
    known = set(result).union(*others)
    kept = "".join(letter for letter in terms[index] if letter in known)
    c = torch.einsum(f"{','.join([result, *others])}->{kept}", s, *([] if weight is None else [weight]))
    for axis, letter in enumerate(terms[index]):
        if letter not in known:  # it was summed over: every element gets the same
            c = c.unsqueeze(axis)
    return c.expand(x.shape)


@dataclass(frozen=True)
class EinsteinSum(FixedOperation):
    """An Einstein sum of one or two tensors, linear in operand ``index``."""

    equation: str
    index: int

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        if weight is None:
            return torch.einsum(self.equation, x)
        return torch.einsum(self.equation, *((x, weight) if self.index == 0 else (weight, x)))

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return einsum_transpose(s, weight, x, self.equation, self.index)

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        # Without a second tensor its weights are ones.
        return super().changed(weight, change) if weight is None else (self, change(weight))
