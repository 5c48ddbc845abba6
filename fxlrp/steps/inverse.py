"""Inverse matrices: of a system of equations, linear in its right-hand side; of a matrix, with itself held constant.

An inverse is linear in its matrix once the inverses around it are held: ``A⁻¹ = A⁻¹ A A⁻¹``. Up to the sign, these are
the weights of its derivative. They hold for the pseudo-inverse as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight
from fxlrp.steps.primitives import magnitude, negative, positive, squared


@dataclass(frozen=True)
class InverseProduct(LinearOperation):
    """The solution ``weight @ x`` for the right-hand side ``x``, or ``x @ weight`` where not ``left``.

    The weight is the inverse matrix. As ``torch.linalg.solve`` has it, ``x`` may be one column for each matrix.
    """

    left: bool

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return inverse_product(x, weight, self.left)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return inverse_product_transpose(s, weight, x, self.left)


def _is_column(x: Tensor, weight: Tensor) -> bool:
    return x.dim() == 1 or (x.dim() == weight.dim() - 1 and x.shape == weight.shape[:-1])


@primitive
def inverse_product(x: Tensor, weight: Tensor, left: bool) -> Tensor:
    """The product of an inverse matrix with the right-hand side of its system of equations."""
    if _is_column(x, weight):
        return (weight @ x.unsqueeze(-1)).squeeze(-1)
    return weight @ x if left else x @ weight


@primitive(linear="first")
def inverse_product_transpose(s: Tensor, weight: Tensor, x: Tensor, left: bool) -> Tensor:
    """The transpose of :func:`inverse_product`, in the shape of ``x``."""
    return inverse_product(s, weight.mT, left).sum_to_size(x.shape)


Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sandwich(FixedOperation):
    """``Σ before @ x @ behind`` over pairs of matrices, which are made of the operand and held constant.

    The weight of an element of ``x`` is a product of an element of each. ``shape`` is that of the result, which may
    have one column for each matrix, and no axis for it.
    """

    pairs: Pairs
    shape: Any

    held = True

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return sandwich(x, self.pairs, self.shape)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return sandwich_transpose(s, x, self.pairs)

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        ((before, behind),) = self.pairs
        if change in (positive, negative):  # a product is positive where both factors have the same sign
            other = negative if change is positive else positive
            return replace(self, pairs=[(positive(before), change(behind)), (negative(before), other(behind))]), None
        assert change in (magnitude, squared, torch.ones_like), "these changes of a product are those of its factors"
        return replace(self, pairs=[(change(before), change(behind))]), None


@primitive
def sandwich(x: Tensor, pairs: Pairs, shape: torch.Size) -> Tensor:
    """``Σ before @ x @ behind``, in this shape."""
    return torch.stack([before @ x @ behind for before, behind in pairs]).sum(0).reshape(shape)


@primitive(linear="first")
def sandwich_transpose(s: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    """The transpose of :func:`sandwich`, in the shape of ``x``."""
    before, behind = pairs[0]
    s = s if s.shape[-2:] == (before.shape[-2], behind.shape[-1]) else s.unsqueeze(-1)
    return torch.stack([before.mT @ s @ behind.mT for before, behind in pairs]).sum(0).sum_to_size(x.shape)


@primitive
def inverse_of(matrix: Tensor, how: str, *form: Any) -> Tensor:
    """The inverse of what ``matrix`` stands for.

    ``how``: ``"inverse"`` of itself, ``"pseudo"`` with the arguments of ``torch.linalg.pinv``, ``"triangular"`` of its
    upper triangle or lower one, ``"cholesky"`` of the product of its factors.
    """
    if how == "pseudo":
        atol, rtol, hermitian = form
        return torch.linalg.pinv(matrix, atol=atol, rtol=rtol, hermitian=hermitian)
    if how == "cholesky":
        return torch.cholesky_inverse(matrix, *form)
    if how == "triangular":
        upper, unit = form
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, eye, upper=upper, unitriangular=unit)
    return torch.linalg.inv(matrix)


@primitive
def as_columns(solution: Tensor, inverse: Tensor) -> Tensor:
    """The solution of a system of equations with its column, which it lacks where it is a vector for each matrix."""
    return solution.unsqueeze(-1) if _is_column(solution, inverse) else solution
