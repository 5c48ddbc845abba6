"""Arithmetic of two numbers: of two signals a sum makes a join, a product or a quotient a gate."""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import torch
from torch import fx

from fxlrp.steps.selection import winners
from fxlrp.vocabulary.operation import Arguments, Bound, Composed, Kind, Operation, Sign

aten = torch.ops.aten


def is_scalar(value: Any) -> bool:
    return not isinstance(value, torch.Tensor | fx.Proxy)


def _times(value: Any, factor: Any) -> Any:
    """A number or a tensor times ``alpha``."""
    if factor == 1:
        return value
    return value * factor if is_scalar(value) else aten.mul.Tensor(value, factor)


def lower_add(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    other = _times(other, alpha)
    return aten.add.Tensor(other, input) if is_scalar(input) else aten.add.Tensor(input, other)


def lower_sub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    other = _times(other, alpha)
    if is_scalar(input):
        return aten.add.Tensor(aten.neg.default(other), input)
    return aten.sub.Tensor(input, other)


def lower_rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return lower_sub(other, input, alpha=alpha)


def lower_add_scalar(self: Any, other: Any, alpha: Any = 1) -> Any:
    return aten.add.Tensor(self, other * alpha)


def lower_sub_scalar(self: Any, other: Any, alpha: Any = 1) -> Any:
    return aten.sub.Tensor(self, other * alpha)


def lower_rsub_scalar(self: Any, other: Any, alpha: Any = 1) -> Any:
    return lower_sub(other, self, alpha=alpha)


def lower_addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    product = aten.mul.Tensor(tensor1, tensor2)
    return aten.add.Tensor(input, product if value == 1 else aten.mul.Tensor(product, value))


def lower_extremum(name: str, input: Any, other: Any) -> Any:
    return getattr(aten, name).default(input, other)


def to_extremum(r: Any, a: Arguments) -> list[Any]:
    first = winners(r, a["self"], a["output"])
    return [first, r - first]


def lower_mul(input: Any, other: Any) -> Any:
    return aten.mul.Tensor(other, input) if is_scalar(input) else aten.mul.Tensor(input, other)


def lower_div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if is_scalar(input):
        quotient = aten.mul.Tensor(aten.reciprocal.default(other), input)
    else:
        quotient = aten.div.Tensor(input, other)
    return quotient if rounding_mode is None else getattr(aten, rounding_mode).default(quotient)


def lower_pow(input: Any, exponent: Any) -> Any:
    if is_scalar(input):
        return aten.pow.Scalar(input, exponent)
    return (aten.pow.Tensor_Scalar if is_scalar(exponent) else aten.pow.Tensor_Tensor)(input, exponent)


def lower_paired(target: Any, input: Any, other: Any) -> Any:
    """A function of two numbers, of which one need not be a tensor."""
    if is_scalar(input):
        return target(torch.full_like(other, input), other)
    return target(input, torch.full_like(input, other) if is_scalar(other) else other)


def lower_floor_divide(input: Any, other: Any) -> Any:
    return lower_div(input, other, rounding_mode="floor")


def lower_copysign(input: Any, other: Any) -> Any:
    """The magnitude with a sign that is held constant."""
    if is_scalar(other):
        return aten.mul.Tensor(aten.abs.default(input), math.copysign(1.0, other))
    return aten.mul.Tensor(aten.abs.default(input), torch.copysign(torch.ones_like(other), other))


def lower_ldexp(input: Any, other: Any) -> Any:
    return aten.mul.Tensor(input, aten.exp2.default(other))


def sign_of_power(a: Arguments) -> Sign:
    return Sign.NONNEGATIVE if isinstance(a["exponent"], int) and a["exponent"] % 2 == 0 else Sign.KEEPS


PAIRED = (
    (aten.pow.Tensor_Tensor, ("self", "exponent")),
    (aten.atan2.default, ("self", "other")),
    (aten.hypot.default, ("self", "other")),
    (aten.fmod.Tensor, ("self", "other")),
    (aten.remainder.Tensor, ("self", "other")),
    (aten.xlogy.Tensor, ("self", "other")),
)
"""Functions of two numbers; where both are of the signal, each has half, as two factors have."""

OPERATIONS = [
    Operation(
        aten.add.Tensor, Kind.POINTWISE, several=Kind.JOIN, operands=("self", "other"),
        functions=(torch.add, operator.add, operator.iadd), methods=("add",), lower=lower_add,
        sign=Sign.KEEPS, bound=Bound.KEEPS,
        aten={aten.add.Scalar: lower_add_scalar, aten.addcmul.default: lower_addcmul},
    ),
    Operation(
        aten.sub.Tensor, Kind.POINTWISE, several=Kind.JOIN, operands=("self", "other"),
        functions=(torch.sub, torch.subtract, operator.sub, operator.isub), methods=("sub", "subtract"),
        lower=lower_sub, bound=Bound.KEEPS,
        aten={aten.sub.Scalar: lower_sub_scalar, aten.rsub.Tensor: lower_rsub, aten.rsub.Scalar: lower_rsub_scalar},
    ),
    Operation(
        aten.mul.Tensor, Kind.POINTWISE, several=Kind.GATE, operands=("self", "other"),
        functions=(torch.mul, torch.multiply, operator.mul, operator.imul), methods=("mul", "multiply"),
        lower=lower_mul, sign=Sign.KEEPS, bound=Bound.KEEPS, aten={aten.mul.Scalar: lower_mul},
    ),
    Operation(
        aten.div.Tensor, Kind.POINTWISE, several=Kind.GATE, operands=("self", "other"),
        functions=(torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv),
        methods=("div", "divide", "true_divide"), lower=lower_div, sign=Sign.KEEPS, bound=Bound.KEEPS,
        aten=dict.fromkeys((aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode), lower_div),
    ),
    Operation(
        aten.pow.Tensor_Scalar, Kind.POINTWISE, functions=(torch.pow, operator.pow, operator.ipow),
        methods=("pow",), lower=lower_pow, sign=sign_of_power,
    ),
    *(
        Operation(
            getattr(aten, name).default, Kind.POINTWISE, several=Kind.ROUTING, operands=("self", "other"),
            functions=(getattr(torch, name), getattr(torch, like)), methods=(name, like),
            lower=partial(lower_extremum, name), transpose=to_extremum, sign=Sign.KEEPS,
            aten=dict.fromkeys((getattr(aten, old).other, getattr(aten, like).default), partial(lower_extremum, name)),
        )
        for name, old, like in (("maximum", "max", "fmax"), ("minimum", "min", "fmin"))
    ),
    Operation(aten.pow.Scalar, Kind.POINTWISE, operands=("exponent",), sign=Sign.NONNEGATIVE),
    *(Operation(target, Kind.POINTWISE, several=Kind.GATE, operands=names, lower=target) for target, names in PAIRED),
]

COMPOSED = [
    Composed(lower_rsub, (torch.rsub,)),
    Composed(lower_addcmul, (torch.addcmul,)),
    Composed(lower_floor_divide, (torch.floor_divide, operator.floordiv), ("floor_divide",), {
        aten.floor_divide.default: None, aten.floor_divide.Scalar: None,
    }),
    Composed(lower_copysign, (torch.copysign,), ("copysign",), {
        aten.copysign.Tensor: None, aten.copysign.Scalar: None,
    }),
    Composed(lower_ldexp, (torch.ldexp,), ("ldexp",), {aten.ldexp.Tensor: None}),
    Composed(partial(lower_paired, aten.fmod.Tensor), (torch.fmod,), ("fmod",), {aten.fmod.Scalar: None}),
    Composed(partial(lower_paired, aten.remainder.Tensor), (torch.remainder, operator.mod), ("remainder",),
             {aten.remainder.Scalar: None, aten.remainder.Scalar_Tensor: None}),
    Composed(partial(lower_paired, aten.atan2.default), (torch.atan2, torch.arctan2), ("atan2", "arctan2")),
    Composed(partial(lower_paired, aten.hypot.default), (torch.hypot,), ("hypot",)),
    Composed(partial(lower_paired, aten.xlogy.Tensor), (torch.xlogy, torch.special.xlogy), ("xlogy",),
             {aten.xlogy.Scalar_Other: None, aten.xlogy.Scalar_Self: None}),
]
