"""Selections: max pooling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.rules.selection import AdaptiveMaxPool, MaxPool
from fxlrp.vocabulary.linear import per_axis
from fxlrp.vocabulary.operation import Arguments, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten


def max_pool(dims: int) -> Operation:
    target = getattr(aten, f"max_pool{dims}d").default

    def lower(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
              ceil_mode: bool = False, return_indices: bool = False) -> Any:
        if return_indices:
            raise Unsupported("max pooling that returns its indices")
        kernel = per_axis(kernel_size, dims)
        stride = kernel if stride in (None, []) else per_axis(stride, dims)
        return target(input, kernel, stride, per_axis(padding, dims), per_axis(dilation, dims), ceil_mode)

    def bind(a: Arguments, operand: str) -> MaxPool:
        kernel = per_axis(a["kernel_size"], dims)
        stride = kernel if a["stride"] in (None, []) else per_axis(a["stride"], dims)
        return MaxPool(kernel, stride, per_axis(a["padding"], dims), per_axis(a["dilation"], dims), a["ceil_mode"])

    functions = (getattr(F, f"max_pool{dims}d"), getattr(torch, f"max_pool{dims}d"))
    return Operation(target, Kind.SELECTION, functions=functions, lower=lower, bind=bind, sign=Sign.KEEPS)


def adaptive_max_pool(dims: int) -> Operation:
    # ATen's operation returns a pair; torch's own function with the values alone is kept.
    target = getattr(aten, f"adaptive_max_pool{dims}d").default

    def lower(input: Any, output_size: Any, return_indices: bool = False) -> Any:
        if return_indices:
            raise Unsupported("max pooling that returns its indices")
        size = per_axis(output_size, dims)
        size = [input.shape[i - dims] if n is None else n for i, n in enumerate(size)]
        return target(input, size)[0]

    def bind(a: Arguments, operand: str) -> AdaptiveMaxPool:
        return AdaptiveMaxPool(a["output_size"])

    function = getattr(F, f"adaptive_max_pool{dims}d")
    return Operation(
        target, Kind.SELECTION, functions=(function,), lower=lower, bind=bind, sign=Sign.KEEPS, outputs_many=True
    )


OPERATIONS = [
    *(max_pool(dims) for dims in (1, 2, 3)),
    *(adaptive_max_pool(dims) for dims in (1, 2, 3)),
]
