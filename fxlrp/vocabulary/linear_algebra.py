"""Systems of linear equations, inverse matrices, and determinants."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fxlrp.steps.inverse import InverseProduct, Sandwich, as_columns, inverse_of, inverse_product
from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.reduction import WeightedReduction, determinant_weights
from fxlrp.vocabulary.channel_moves import lost
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Unsupported

aten = torch.ops.aten
Bindings = tuple[LinearOperation, Any, Any]


def bind_solve(a: Arguments, operand: str) -> Bindings:
    """Linear in the right-hand side ``B``; in the matrix ``A`` with the solution and the inverse held."""
    left, inverse = a["left"], inverse_of(a["A"], "inverse")
    if operand == "B":
        return InverseProduct(left), inverse, None
    solution = inverse_product(a["B"], inverse, left)
    pair = (inverse, as_columns(solution, inverse)) if left else (solution, inverse)
    return Sandwich([pair], solution.shape), None, None


def bind_triangular(a: Arguments, operand: str) -> Bindings:
    return InverseProduct(a["left"]), inverse_of(a["self"], "triangular", a["upper"], a["unitriangular"]), None


def bind_cholesky(a: Arguments, operand: str) -> Bindings:
    return InverseProduct(True), inverse_of(a["input2"], "cholesky", a["upper"]), None


def inverse(target: Any, how: str, *form: str, **spellings: Any) -> Operation:
    """An inverse of a matrix, which is linear in the matrix with itself held on both sides."""

    def bind(a: Arguments, operand: str) -> Bindings:
        found = inverse_of(a[operand], how, *(a[name] for name in form))
        return Sandwich([(found, found)], found.shape), None, None

    return Operation(target, Kind.LINEAR, bind=bind, channels=lost, **spellings)


def lower_inverse(input: Any = None, *, A: Any = None) -> Any:
    return aten.linalg_inv.default(A if input is None else input)


def lower_inverse_ex(A: Any, *, check_errors: bool = False) -> Any:
    return lower_inverse(A), None


def lower_pseudo_inverse(input: Any = None, rcond: Any = None, hermitian: bool = False, *, A: Any = None,
                         atol: Any = None, rtol: Any = None) -> Any:
    limits = [atol, rtol if rcond is None else rcond]
    if not all(limit is None or isinstance(limit, int | float) for limit in limits):
        raise Unsupported("a pseudo-inverse whose tolerance is a tensor")
    matrix = A if input is None else input
    return aten.linalg_pinv.atol_rtol_float(matrix, atol=limits[0], rtol=limits[1], hermitian=hermitian)


def lower_pinverse(input: Any, rcond: float = 1e-15) -> Any:
    return lower_pseudo_inverse(input, rcond)


def lower_solve(A: Any, B: Any, *, left: bool = True) -> Any:
    return aten.linalg_solve.default(A, B, left=left)


def lower_solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    return lower_solve(A, B, left=left), None, None, None


def bind_determinant(a: Arguments, operand: str) -> Bindings:
    return WeightedReduction([-2, -1]), determinant_weights(a[operand]), None


def lower_determinant(input: Any = None, *, A: Any = None) -> Any:
    return aten.linalg_det.default(A if input is None else input)


class _LogDeterminant(NamedTuple):
    sign: Any
    logabsdet: Any


def lower_log_determinant(input: Any = None, *, A: Any = None) -> Any:
    determinant = lower_determinant(input, A=A)
    return _LogDeterminant(torch.sign(determinant), aten.log.default(aten.abs.default(determinant)))


class _LeastSquares(NamedTuple):
    solution: Any
    residuals: None = None
    rank: None = None
    singular_values: None = None


def lower_least_squares(input: Any = None, b: Any = None, rcond: Any = None, *, A: Any = None, B: Any = None,
                        driver: Any = None) -> Any:
    """Of a matrix of full rank, by its pseudo-inverse."""
    matrix, right = A if input is None else input, B if b is None else b
    if rcond is not None:
        raise Unsupported("least squares with rcond")
    return _LeastSquares(aten.matmul.default(lower_pseudo_inverse(matrix), right))


OPERATIONS = [
    Operation(
        aten.linalg_solve.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("B", "A"), values="B", bind=bind_solve,
        functions=(torch.linalg.solve,), lower=lower_solve, channels=lost,
        aten={aten._linalg_solve_ex.default: lower_solve_ex, aten.linalg_solve_ex.default: lower_solve_ex},
    ),
    Operation(
        aten.linalg_solve_triangular.default, Kind.LINEAR, operands=("B",), bind=bind_triangular, channels=lost,
        functions=(torch.linalg.solve_triangular,),
    ),
    Operation(
        aten.cholesky_solve.default, Kind.LINEAR, operands=("self",), bind=bind_cholesky, channels=lost,
        functions=(torch.cholesky_solve,), methods=("cholesky_solve",),
    ),
    Operation(
        aten.linalg_det.default, Kind.LINEAR, bind=bind_determinant, channels=lost, lower=lower_determinant,
        functions=(torch.linalg.det, torch.det), methods=("det",), aten={
            aten.det.default: None, aten._linalg_det.default: lambda A: (lower_determinant(A), None, None),
        },
    ),
    inverse(
        aten.linalg_inv.default, "inverse", functions=(torch.linalg.inv, torch.inverse), methods=("inverse",),
        lower=lower_inverse, aten={aten.inverse.default: lower_inverse},
    ),
    inverse(
        aten.linalg_pinv.atol_rtol_float, "pseudo", "atol", "rtol", "hermitian", functions=(torch.linalg.pinv,),
        lower=lower_pseudo_inverse, aten=dict.fromkeys(
            (aten.linalg_pinv.default, aten.linalg_pinv.atol_rtol_tensor), lower_pseudo_inverse
        ),
    ),
]

COMPOSED = [
    Composed(lower_pinverse, (torch.pinverse,), ("pinverse",), {aten.pinverse.default: None}),
    Composed(lower_inverse_ex, (torch.linalg.inv_ex,), (), {aten.linalg_inv_ex.default: None}),
    Composed(lower_log_determinant, (torch.linalg.slogdet, torch.slogdet), ("slogdet",), {
        aten.linalg_slogdet.default: None, aten.slogdet.default: None,
        aten._linalg_slogdet.default: lambda A: (*lower_log_determinant(A), None, None),
    }),
    Composed(lower_least_squares, (torch.linalg.lstsq,), (), {aten.linalg_lstsq.default: None}),
]
