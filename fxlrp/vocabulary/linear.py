"""Linear operations: convolution, linear layers, average pooling, mean and sum."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.rules.operations import (
    AdaptiveAveragePool,
    AveragePool,
    Convolution,
    Dense,
    LinearOperation,
    MatrixProduct,
    Reduction,
    TransposedConvolution,
    Upsample,
)
from fxlrp.vocabulary.operation import Arguments, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten
Bound = tuple[LinearOperation, Any, Any]


def per_axis(value: Any, dims: int) -> list[Any]:
    """One entry an axis from an int, a sequence of one, or a sequence."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * dims if len(values) == 1 else values


def convolution(dims: int) -> Operation:
    target = getattr(aten, f"conv{dims}d").default

    def lower(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
              dilation: Any = 1, groups: int = 1) -> Any:
        stride, dilation = per_axis(stride, dims), per_axis(dilation, dims)
        if isinstance(padding, str):
            if padding == "same":
                kernel = weight.shape[2:]
                if not all(isinstance(k, int) for k in kernel):
                    raise Unsupported("padding='same' with a weight that is computed in the graph")
                total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
                if any(t % 2 for t in total):
                    # The odd row goes behind, as torch does it.
                    pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
                    input = aten.constant_pad_nd.default(input, pads, 0.0)
                    total = [0] * dims
                padding = [t // 2 for t in total]
            else:
                padding = 0
        return target(input, weight, bias, stride, per_axis(padding, dims), dilation, groups)

    def bind(a: Arguments, operand: str) -> Bound:
        operation = Convolution(
            dims, per_axis(a["stride"], dims), per_axis(a["padding"], dims), per_axis(a["dilation"], dims), a["groups"]
        )
        return operation, a["weight"], a["bias"]

    return Operation(
        target, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(getattr(torch, f"conv{dims}d"),), aten=(getattr(aten, f"conv{dims}d").padding,),
        lower=lower, bind=bind, parametric=True,
    )


def transposed_convolution(dims: int) -> Operation:
    packet = getattr(aten, f"conv_transpose{dims}d")
    target = packet.default if dims == 1 else packet.input

    def lower(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
              output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Any:
        axes = [per_axis(v, dims) for v in (stride, padding, output_padding)]
        return target(input, weight, bias, *axes, groups, per_axis(dilation, dims))

    def bind(a: Arguments, operand: str) -> Bound:
        axes = {n: per_axis(a[n], dims) for n in ("stride", "padding", "output_padding", "dilation")}
        operation = TransposedConvolution(dims, **axes, groups=a["groups"])
        return operation, a["weight"], a["bias"]

    return Operation(
        target, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(getattr(torch, f"conv_transpose{dims}d"),), lower=lower, bind=bind, parametric=True,
    )


def average_pool(dims: int) -> Operation:
    target = getattr(aten, f"avg_pool{dims}d").default

    def bind(a: Arguments, operand: str) -> Bound:
        kernel = per_axis(a["kernel_size"], dims)
        stride = per_axis(a["stride"], dims) if a["stride"] not in ([], (), None) else kernel
        operation = AveragePool(
            kernel, stride, per_axis(a["padding"], dims), a["ceil_mode"], a["count_include_pad"],
            a.get("divisor_override"),
        )
        return operation, None, None

    def lower(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: int | None = None) -> Any:
        kernel = per_axis(kernel_size, dims)
        extra = [divisor_override] if dims > 1 else []
        return target(
            input, kernel, per_axis(stride, dims) if stride not in (None, []) else kernel,
            per_axis(padding, dims), ceil_mode, count_include_pad, *extra,
        )

    return Operation(
        target, Kind.LINEAR, functions=(getattr(F, f"avg_pool{dims}d"),), lower=lower, bind=bind, sign=Sign.KEEPS
    )


def adaptive_average_pool(dims: int) -> Operation:
    target = getattr(aten, f"adaptive_avg_pool{dims}d").default

    def lower(input: Any, output_size: Any) -> Any:
        size = per_axis(output_size, dims)
        return target(input, [input.shape[i - dims] if n is None else n for i, n in enumerate(size)])

    def bind(a: Arguments, operand: str) -> Bound:
        return AdaptiveAveragePool(a["output_size"]), None, None

    function = getattr(F, f"adaptive_avg_pool{dims}d")
    return Operation(target, Kind.LINEAR, functions=(function,), lower=lower, bind=bind, sign=Sign.KEEPS)


def axes(dim: Any) -> list[int] | None:
    """``dim`` as ATen takes it: a list, or ``None`` for every axis."""
    if dim is None or isinstance(dim, list):
        return dim
    return list(dim) if isinstance(dim, tuple) else [dim]


def reduction(target: Any, name: str, **more: Any) -> Operation:
    def lower(input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return target(input, axes(dim), keepdim, **({} if dtype is None else {"dtype": dtype}))

    def bind(a: Arguments, operand: str) -> Bound:
        return Reduction(a["dim"] or None, a["keepdim"], mean=name == "mean"), None, None

    return Operation(
        target, Kind.LINEAR, functions=(getattr(torch, name),), methods=(name,), lower=lower, bind=bind,
        sign=Sign.KEEPS, **more,
    )


def bind_linear(a: Arguments, operand: str) -> Bound:
    return Dense(), a["weight"], a["bias"]


def bind_matmul(a: Arguments, operand: str) -> Bound:
    left = operand == "other"
    return MatrixProduct(left), a["self" if left else "other"], None


def interpolation(mode: str) -> Operation:
    """Nearest or linear interpolation, ``mode`` as ATen names it."""

    def bind(a: Arguments, operand: str) -> Bound:
        return Upsample(mode, a["output_size"], a.get("align_corners"), a["scale_factors"]), None, None

    return Operation(getattr(aten, f"upsample_{mode}").vec, Kind.LINEAR, bind=bind, sign=Sign.KEEPS)


_INTERPOLATIONS = {"linear": (1, "linear1d"), "bilinear": (2, "bilinear2d"), "trilinear": (3, "trilinear3d")}


def lower_interpolate(input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                      align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                      antialias: bool = False) -> Any:
    if antialias or recompute_scale_factor or mode not in (*_INTERPOLATIONS, "nearest"):
        raise Unsupported(f"interpolation in mode {mode!r}" + (" with antialias" if antialias else ""))
    dims = _INTERPOLATIONS[mode][0] if mode in _INTERPOLATIONS else 2
    name = _INTERPOLATIONS[mode][1] if mode in _INTERPOLATIONS else "nearest2d"
    corners = [bool(align_corners)] if mode in _INTERPOLATIONS else []
    sizes = None if size is None else per_axis(size, dims) if not hasattr(size, "node") else size
    factors = None if scale_factor is None else [float(f) for f in per_axis(scale_factor, dims)]
    return getattr(aten, f"upsample_{name}").vec(input, sizes, *corners, factors)


OPERATIONS: list[Operation] = [
    *(convolution(dims) for dims in (1, 2, 3)),
    *(transposed_convolution(dims) for dims in (1, 2, 3)),
    Operation(
        aten.linear.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(F.linear,), bind=bind_linear, parametric=True,
    ),
    Operation(
        aten.matmul.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("self", "other"),
        functions=(torch.matmul, operator.matmul), methods=("matmul",), bind=bind_matmul, parametric=True,
    ),
    *(average_pool(dims) for dims in (1, 2, 3)),
    *(adaptive_average_pool(dims) for dims in (1, 2, 3)),
    *(interpolation(mode) for mode in ("linear1d", "bilinear2d", "trilinear3d")),
    Operation(
        aten.upsample_nearest2d.vec, Kind.LINEAR, functions=(F.interpolate, F.upsample), lower=lower_interpolate,
        bind=interpolation("nearest2d").bind, sign=Sign.KEEPS,
    ),
    reduction(aten.mean.dim, "mean"),
    reduction(aten.sum.dim_IntList, "sum"),
]
