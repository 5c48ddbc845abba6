"""Pointwise functions of one tensor: activations, elementary functions, casts, and what does nothing in eval mode."""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.steps.held import rounded_share
from fxlrp.vocabulary.operation import Arguments, Bound, Composed, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten


def pointwise(name: str, *functions: Any, methods: tuple[str, ...] | None = None, target: Any = None,
              **facts: Any) -> Operation:
    """A function of one tensor, found under ``name`` in torch, in functional and among methods."""
    spelled = {getattr(torch, name, None), getattr(F, name, None), *functions} - {None}
    return Operation(
        target or getattr(aten, name).default, Kind.POINTWISE, functions=tuple(spelled),
        methods=(name,) if methods is None else methods, **facts,
    )


def activation(name: str, *functions: Any, **facts: Any) -> Operation:
    """An activation, found in the same places."""
    return pointwise(name, *functions, activates=True, **facts)


def lower_cast(input: Any, *args: Any, **kwargs: Any) -> Any:
    """``x.to(…)``: another dtype is a cast; another device or layout is the explainer's own affair."""
    wanted = [*args, kwargs.get("dtype"), kwargs.get("other")]
    for value in wanted:
        if isinstance(value, torch.dtype):
            return aten.to.dtype(input, value)
        if isinstance(value, torch.Tensor | fx.Proxy) and not _is_device(value):
            node = getattr(value, "node", None)
            is_dtype = node is not None and node.target is getattr and node.args[1] == "dtype"
            return aten.to.dtype(input, value if is_dtype else value.dtype)
    return input


def _is_device(value: Any) -> bool:
    node = getattr(value, "node", None)
    return node is not None and node.target is getattr and node.args[1] == "device"


def lower_type(input: Any, dtype: Any, non_blocking: bool = False) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise Unsupported("type() by the name of a type: give a torch.dtype")
    return aten.to.dtype(input, dtype)


def lower_to_copy(self: Any, *, dtype: Any = None, **layout: Any) -> Any:
    return self if dtype is None else aten.to.dtype(self, dtype)


def lower_to_dtype(self: Any, dtype: Any, *layout: Any, **more: Any) -> Any:
    return aten.to.dtype(self, dtype)


def cast_to(dtype: torch.dtype) -> Any:
    return lambda input, *layout, **more: aten.to.dtype(input, dtype)


def lower_glu(input: Any, dim: int = -1) -> Any:
    halves = aten.chunk.default(input, 2, dim)
    return aten.mul.Tensor(halves[0], aten.sigmoid.default(halves[1]))


def lower_local_response_norm(input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """``x / (k + α mean(x²) over neighbouring channels)^β``; for images, (batch, channels, height, width)."""
    squares = aten.unsqueeze.default(aten.mul.Tensor(input, input), 1)
    padded = aten.constant_pad_nd.default(squares, [0, 0, 0, 0, size // 2, (size - 1) // 2], 0.0)
    mean = aten.avg_pool3d.default(padded, [size, 1, 1], [1, 1, 1])
    scale = aten.add.Tensor(aten.mul.Tensor(aten.squeeze.dims(mean, [1]), alpha), k)
    return aten.div.Tensor(input, aten.pow.Tensor_Scalar(scale, beta))


def lower_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, *,
                  target: Any = aten.softmax.int) -> Any:
    if dim is None:
        raise Unsupported("softmax without dim")
    return target(input, dim, dtype)


def lower_rrelu(input: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
                inplace: bool = False) -> Any:
    if training:
        raise Unsupported("a leaky ReLU with random slopes in eval mode (pass training=self.training)", final=True)
    return aten.leaky_relu.default(input, (lower + upper) / 2)


def lower_rrelu_with_noise(input: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
                           generator: Any = None) -> Any:
    return lower_rrelu(input, lower, upper, training), noise


def lower_rounded(target: Any, input: Any, *form: Any) -> Any:
    """Fake quantisation, which rounds: by how much each value changes is held constant, and relevance passes."""
    return aten.mul.Tensor(input, rounded_share(input, target(input, *form)))


def lower_dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p > 0:
        raise Unsupported("dropout that stays active in eval mode (pass training=self.training)", final=True)
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


def _stochastic_depth() -> Any:
    from torchvision.ops.stochastic_depth import stochastic_depth

    return stochastic_depth


def lower_round(input: Any, *, decimals: int = 0) -> Any:
    scale = 10.0**decimals
    if decimals == 0:
        return aten.round.default(input)
    return aten.div.Tensor(aten.round.default(aten.mul.Tensor(input, scale)), scale)


def lower_safe_softmax(self: Any, dim: int, dtype: Any = None) -> Any:
    """A softmax that is zero where all is masked, and a softmax would be no number."""
    everywhere = torch.all(torch.eq(self, -math.inf), dim, True)
    return aten.masked_fill.Scalar(aten.softmax.int(self, dim, dtype), everywhere, 0.0)


ACTIVATIONS = [
    activation("relu", sign=Sign.NONNEGATIVE),
    activation("relu6", sign=Sign.NONNEGATIVE, bound=Bound.CLIPPED, methods=()),
    activation("hardtanh", sign=sign_of_clamp("min_val", "max_val"), bound=Bound.CLIPPED, methods=()),
    activation("clamp", torch.clip, methods=("clamp", "clip"), sign=sign_of_clamp("min", "max"), bound=Bound.CLIPPED),
    Operation(aten.clamp.Tensor, Kind.POINTWISE, bound=Bound.CLIPPED, activates=True),
    activation("clamp_min", sign=sign_of_clamp("min", None)),
    activation("clamp_max", sign=sign_of_clamp(None, "max")),
    activation("threshold", methods=()),
    activation("leaky_relu", methods=(), sign=Sign.KEEPS),
    activation("prelu"),
    activation("elu", methods=(), sign=Sign.KEEPS),
    activation("selu", sign=Sign.KEEPS),
    activation("celu", sign=Sign.KEEPS),
    activation("gelu", methods=(), sign=Sign.KEEPS),
    activation("silu", methods=(), sign=Sign.KEEPS),
    activation("mish", methods=(), sign=Sign.KEEPS),
    activation("hardswish", methods=(), sign=Sign.KEEPS),
    activation("hardshrink", sign=Sign.KEEPS),
    activation("softshrink", methods=(), sign=Sign.KEEPS),
    activation("softplus", methods=(), sign=Sign.NONNEGATIVE),
    activation("log_sigmoid", F.logsigmoid, methods=()),
    activation("sigmoid", torch.special.expit, sign=Sign.NONNEGATIVE, bound=Bound.GATE),
    activation("hardsigmoid", methods=(), sign=Sign.NONNEGATIVE, bound=Bound.GATE),
    activation("tanh", sign=Sign.KEEPS, bound=Bound.SQUASHED),
    Operation(
        aten.softmax.int, Kind.POINTWISE, functions=(torch.softmax, F.softmax), methods=("softmax",),
        lower=lower_softmax, sign=Sign.NONNEGATIVE, bound=Bound.GATE,
        aten={
            aten._softmax.default: lambda self, dim, half: aten.softmax.int(self, dim),
            aten._safe_softmax.default: lower_safe_softmax,
        },
    ),
    Operation(
        aten.log_softmax.int, Kind.POINTWISE, functions=(torch.log_softmax, F.log_softmax),
        methods=("log_softmax",), lower=partial(lower_softmax, target=aten.log_softmax.int),
        aten={aten._log_softmax.default: lambda self, dim, half: aten.log_softmax.int(self, dim)},
    ),
]

SPECIAL = ("special_i0e", "special_i1", "special_i1e", "special_ndtri", "special_erfcx")
ODD = ("asin", "asinh", "sinh", "floor", "ceil", "trunc", "frac", "sinc")
"""Functions that keep the sign of what they are given, or make it zero."""

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
    pointwise("expm1", sign=Sign.KEEPS),
    pointwise("tan"),
    pointwise("atan", sign=Sign.KEEPS, bound=Bound.CLIPPED),
    pointwise("nan_to_num", sign=Sign.KEEPS),
    pointwise("round", lower=lower_round, sign=Sign.KEEPS, aten={aten.round.decimals: lower_round}),
    *(pointwise(name, sign=Sign.KEEPS) for name in ODD),
    *(pointwise(name, sign=Sign.NONNEGATIVE) for name in ("exp2", "cosh", "erfc", "i0")),
    *(pointwise(name) for name in ("acos", "acosh", "atanh", "log2", "log10", "digamma", "lgamma")),
    *(pointwise(name, getattr(torch.special, name.removeprefix("special_")), methods=()) for name in SPECIAL),
    pointwise("polygamma", torch.special.polygamma, methods=(), operands=("self",)),
    Operation(
        aten.to.dtype, Kind.POINTWISE, methods=("to", "type_as"), lower=lower_cast, sign=Sign.KEEPS, bound=Bound.KEEPS,
        aten={
            aten._to_copy.default: lower_to_copy, aten.to.dtype_layout: lower_to_copy,
            aten.type_as.default: lower_cast, aten.to.dtype: lower_to_dtype,
            aten.to.device: lambda self, device, dtype, *more: lower_to_dtype(self, dtype),
        },
    ),
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
        methods=("contiguous", "clone", "detach", "requires_grad_", "data", "cpu", "cuda"),
        aten=dict.fromkeys((
            aten.clone.default, aten.contiguous.default, aten.detach.default, aten.lift_fresh_copy.default,
            aten.alias.default, aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
        ), lower_identity),
    ),
]

CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}

COMPOSED = [
    Composed(lambda input, p, train: (lower_dropout(input, p, bool(train)), None), aten={
        aten.native_dropout.default: None,
    }),
    Composed(lower_rrelu, (F.rrelu, torch.rrelu), (), {
        aten.rrelu_with_noise_functional.default: lower_rrelu_with_noise,
        aten.rrelu_with_noise.default: lambda *args: lower_rrelu_with_noise(*args)[0],
    }),
    *(
        Composed(partial(lower_rounded, function), (function,), (), dict.fromkeys(overloads))
        for function, overloads in (
            (torch.fake_quantize_per_tensor_affine, (
                aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams,
            )),
            (torch.fake_quantize_per_channel_affine, (aten.fake_quantize_per_channel_affine.default,)),
        )
    ),
    Composed(lower_glu, (F.glu,), aten={aten.glu.default: None}),
    Composed(lower_local_response_norm, (F.local_response_norm,)),
    Composed(lower_type, methods=("type",)),
    *(Composed(cast_to(dtype), methods=(name,)) for name, dtype in CASTS.items()),
]

OPERATIONS = [*ACTIVATIONS, *FUNCTIONS, *NO_OPERATIONS]
