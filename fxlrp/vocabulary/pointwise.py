"""Pointwise operations: relevance passes them unchanged. Two signals make a join or a gate."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.vocabulary.operation import Arguments, Bound, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten


def pointwise(name: str, *functions: Any, methods: tuple[str, ...] | None = None, target: Any = None,
              **facts: Any) -> Operation:
    """A function of one tensor, found under ``name`` in torch, in functional and among methods."""
    spelled = {getattr(torch, name, None), getattr(F, name, None), *functions} - {None}
    return Operation(
        target or getattr(aten, name).default, Kind.POINTWISE, functions=tuple(spelled),
        methods=(name,) if methods is None else methods, **facts,
    )


def is_scalar(value: Any) -> bool:
    return not isinstance(value, torch.Tensor | fx.Proxy)


def lower_add(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    if is_scalar(input):
        input, other = other, input
    return aten.add.Tensor(input, other if alpha == 1 else aten.mul.Tensor(other, alpha))


def lower_sub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1:
        other = aten.mul.Tensor(other, alpha)
    if is_scalar(input):
        return aten.add.Tensor(aten.neg.default(other), input)
    return aten.sub.Tensor(input, other)


def lower_rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return lower_sub(other, input, alpha=alpha)


def lower_mul(input: Any, other: Any) -> Any:
    return aten.mul.Tensor(other, input) if is_scalar(input) else aten.mul.Tensor(input, other)


def lower_div(input: Any, other: Any) -> Any:
    if is_scalar(input):
        return aten.mul.Tensor(aten.reciprocal.default(other), input)
    return aten.div.Tensor(input, other)


def lower_pow(input: Any, exponent: Any) -> Any:
    if is_scalar(input) or not is_scalar(exponent):
        raise Unsupported("a power whose exponent is a tensor")
    return aten.pow.Tensor_Scalar(input, exponent)


def lower_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, *,
                  target: Any = aten.softmax.int) -> Any:
    if dim is None:
        raise Unsupported("softmax without dim")
    return target(input, dim, dtype)


def lower_dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p > 0:
        raise Unsupported("dropout that stays active in eval mode (pass training=self.training)")
    return input


def lower_stochastic_depth(input: Any, p: float, mode: str, training: bool = True) -> Any:
    return lower_dropout(input, p, training)


def lower_identity(input: Any, *args: Any, **kwargs: Any) -> Any:
    return input


def sign_of_clamp(low: str | None, high: str | None) -> Any:
    """The sign of a value clamped between the arguments of these names; the upper bound has the last word."""

    def sign(a: Arguments) -> Sign:
        minimum, maximum = (None if name is None else a[name] for name in (low, high))
        if maximum is not None and not (isinstance(maximum, int | float) and maximum >= 0):
            return Sign.ANY
        return Sign.NONNEGATIVE if isinstance(minimum, int | float) and minimum >= 0 else Sign.KEEPS

    return sign


def sign_of_power(a: Arguments) -> Sign:
    return Sign.NONNEGATIVE if isinstance(a["exponent"], int) and a["exponent"] % 2 == 0 else Sign.KEEPS


def _stochastic_depth() -> Any:
    from torchvision.ops.stochastic_depth import stochastic_depth

    return stochastic_depth


ARITHMETIC = [
    Operation(
        aten.add.Tensor, Kind.POINTWISE, several=Kind.JOIN, operands=("self", "other"),
        functions=(torch.add, operator.add, operator.iadd), methods=("add",), lower=lower_add,
        sign=Sign.KEEPS, bound=Bound.KEEPS,
    ),
    Operation(
        aten.sub.Tensor, Kind.POINTWISE, several=Kind.JOIN, operands=("self", "other"),
        functions=(torch.sub, torch.subtract, operator.sub, operator.isub), methods=("sub", "subtract"),
        lower=lower_sub, bound=Bound.KEEPS,
    ),
    Operation(
        aten.rsub.Tensor, Kind.POINTWISE, several=Kind.JOIN, operands=("self", "other"), functions=(torch.rsub,),
        lower=lower_rsub,
    ),
    Operation(
        aten.mul.Tensor, Kind.POINTWISE, several=Kind.GATE, operands=("self", "other"),
        functions=(torch.mul, torch.multiply, operator.mul, operator.imul), methods=("mul", "multiply"),
        lower=lower_mul, sign=Sign.KEEPS, bound=Bound.KEEPS,
    ),
    Operation(
        aten.div.Tensor, Kind.POINTWISE, several=Kind.GATE, operands=("self", "other"),
        functions=(torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv),
        methods=("div", "divide", "true_divide"), lower=lower_div, sign=Sign.KEEPS, bound=Bound.KEEPS,
    ),
    Operation(
        aten.pow.Tensor_Scalar, Kind.POINTWISE, functions=(torch.pow, operator.pow, operator.ipow),
        methods=("pow",), lower=lower_pow, sign=sign_of_power,
    ),
]

ACTIVATIONS = [
    pointwise("relu", sign=Sign.NONNEGATIVE),
    pointwise("relu6", sign=Sign.NONNEGATIVE, bound=Bound.CLIPPED, methods=()),
    pointwise("hardtanh", sign=sign_of_clamp("min_val", "max_val"), bound=Bound.CLIPPED, methods=()),
    pointwise("clamp", torch.clip, methods=("clamp", "clip"), sign=sign_of_clamp("min", "max"), bound=Bound.CLIPPED),
    pointwise("clamp_min", sign=sign_of_clamp("min", None)),
    pointwise("clamp_max", sign=sign_of_clamp(None, "max")),
    pointwise("threshold", methods=()),
    pointwise("leaky_relu", methods=(), sign=Sign.KEEPS),
    pointwise("prelu"),
    pointwise("elu", methods=(), sign=Sign.KEEPS),
    pointwise("selu", sign=Sign.KEEPS),
    pointwise("celu", sign=Sign.KEEPS),
    pointwise("gelu", methods=(), sign=Sign.KEEPS),
    pointwise("silu", methods=(), sign=Sign.KEEPS),
    pointwise("mish", methods=(), sign=Sign.KEEPS),
    pointwise("hardswish", methods=(), sign=Sign.KEEPS),
    pointwise("hardshrink", sign=Sign.KEEPS),
    pointwise("softshrink", methods=(), sign=Sign.KEEPS),
    pointwise("softplus", methods=(), sign=Sign.NONNEGATIVE),
    pointwise("log_sigmoid", F.logsigmoid, methods=()),
    pointwise("sigmoid", torch.special.expit, sign=Sign.NONNEGATIVE, bound=Bound.GATE),
    pointwise("hardsigmoid", methods=(), sign=Sign.NONNEGATIVE, bound=Bound.GATE),
    pointwise("tanh", sign=Sign.KEEPS, bound=Bound.GATE),
    Operation(
        aten.softmax.int, Kind.POINTWISE, functions=(torch.softmax, F.softmax), methods=("softmax",),
        lower=lower_softmax, sign=Sign.NONNEGATIVE, bound=Bound.GATE,
    ),
    Operation(
        aten.log_softmax.int, Kind.POINTWISE, functions=(torch.log_softmax, F.log_softmax),
        methods=("log_softmax",), lower=partial(lower_softmax, target=aten.log_softmax.int),
    ),
]

FUNCTIONS = [
    pointwise("neg", torch.negative, operator.neg, bound=Bound.KEEPS),
    pointwise("abs", operator.abs, sign=Sign.NONNEGATIVE),
    pointwise("square", sign=Sign.NONNEGATIVE),
    pointwise("sqrt", sign=Sign.NONNEGATIVE),
    pointwise("rsqrt", sign=Sign.NONNEGATIVE),
    pointwise("reciprocal", sign=Sign.KEEPS),
    pointwise("exp", sign=Sign.NONNEGATIVE),
    pointwise("log"),
    pointwise("log1p", sign=Sign.KEEPS),
    pointwise("sin"),
    pointwise("cos"),
    pointwise("erf", sign=Sign.KEEPS),
]

NO_OPERATIONS = [
    Operation(
        aten.dropout.default, Kind.POINTWISE, lower=lower_dropout,
        functions=(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    ),
    Operation(
        aten.feature_dropout.default, Kind.POINTWISE, lower=lower_stochastic_depth, functions=(_stochastic_depth(),)
    ),
    Operation(
        aten.alias.default, Kind.POINTWISE, lower=lower_identity, functions=(torch.clone, torch.detach),
        methods=("contiguous", "clone", "detach", "requires_grad_", "data"),
    ),
]

OPERATIONS = [*ARITHMETIC, *ACTIVATIONS, *FUNCTIONS, *NO_OPERATIONS]
