"""Pooling, resizing and folding: linear operations whose weights are fixed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.pooling import AdaptiveAveragePool, AveragePool, Fold, Upsample
from fxlrp.vocabulary.channel_moves import behind_batch
from fxlrp.vocabulary.operation import Arguments, Kind, Operation, Sign, Unsupported, per_axis

aten = torch.ops.aten
Bindings = tuple[LinearOperation, Any, Any]


def average_pool(dims: int) -> Operation:
    target = getattr(aten, f"avg_pool{dims}d").default

    def bind(a: Arguments, operand: str) -> Bindings:
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
        target, Kind.LINEAR, functions=(getattr(F, f"avg_pool{dims}d"),), lower=lower, bind=bind, sign=Sign.KEEPS,
        channels=behind_batch,
    )


def adaptive_average_pool(dims: int) -> Operation:
    target = getattr(aten, f"adaptive_avg_pool{dims}d").default

    def lower(input: Any, output_size: Any) -> Any:
        size = per_axis(output_size, dims)
        return target(input, [input.shape[i - dims] if n is None else n for i, n in enumerate(size)])

    def bind(a: Arguments, operand: str) -> Bindings:
        return AdaptiveAveragePool(a["output_size"]), None, None

    function = getattr(F, f"adaptive_avg_pool{dims}d")
    inner = {getattr(aten, f"_adaptive_avg_pool{dims}d").default: lower} if dims > 1 else {}
    return Operation(
        target, Kind.LINEAR, functions=(function,), lower=lower, bind=bind, sign=Sign.KEEPS, channels=behind_batch,
        aten=inner,
    )


def interpolation(mode: str) -> Operation:
    """Nearest, linear or cubic interpolation, ``mode`` as ATen names it."""

    def bind(a: Arguments, operand: str) -> Bindings:
        return Upsample(mode, a["output_size"], a.get("align_corners"), a["scale_factors"]), None, None

    target = getattr(aten, f"upsample_{mode}").vec
    sign = Sign.ANY if "bicubic" in mode else Sign.KEEPS
    return Operation(target, Kind.LINEAR, bind=bind, sign=sign, channels=behind_batch)


_MODES = {
    "nearest": (2, "nearest2d"),
    "linear": (1, "linear1d"),
    "bilinear": (2, "bilinear2d"),
    "trilinear": (3, "trilinear3d"),
    "bicubic": (2, "bicubic2d"),
}


def lower_interpolate(input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                      align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                      antialias: bool = False) -> Any:
    if antialias or recompute_scale_factor or mode not in _MODES:
        raise Unsupported(f"interpolation in mode {mode!r}" + (" with antialias" if antialias else ""))
    dims, name = _MODES[mode]
    corners = [] if mode == "nearest" else [bool(align_corners)]
    sizes = None if size is None else per_axis(size, dims) if not hasattr(size, "node") else size
    factors = None if scale_factor is None else [float(f) for f in per_axis(scale_factor, dims)]
    return getattr(aten, f"upsample_{name}").vec(input, sizes, *corners, factors)


def lower_fold(input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
               stride: Any = 1) -> Any:
    pairs = [per_axis(v, 2) for v in (output_size, kernel_size, dilation, padding, stride)]
    return aten.col2im.default(input, *pairs)


def bind_fold(a: Arguments, operand: str) -> Bindings:
    return Fold(*(list(a[n]) for n in ("output_size", "kernel_size", "dilation", "padding", "stride"))), None, None


OPERATIONS: list[Operation] = [
    *(average_pool(dims) for dims in (1, 2, 3)),
    *(adaptive_average_pool(dims) for dims in (1, 2, 3)),
    *(interpolation(mode) for mode in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d", "nearest1d", "nearest3d")),
    Operation(
        aten.upsample_nearest2d.vec, Kind.LINEAR, functions=(F.interpolate, F.upsample), lower=lower_interpolate,
        bind=interpolation("nearest2d").bind, sign=Sign.KEEPS, channels=behind_batch,
    ),
    Operation(
        aten.col2im.default, Kind.LINEAR, functions=(F.fold,), lower=lower_fold, bind=bind_fold, sign=Sign.KEEPS,
        channels=behind_batch,
    ),
]
