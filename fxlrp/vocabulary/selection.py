"""Selections: max pooling, maxima and minima, the largest entries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps.routing import unsort
from fxlrp.steps.sampling import pool_indices
from fxlrp.steps.selection import AdaptiveMaxPool, Extremum, MaxPool
from fxlrp.vocabulary.channel_moves import behind_batch, reduced
from fxlrp.vocabulary.operation import Arguments, Bound, Kind, Operation, Sign, Unsupported, per_axis
from fxlrp.vocabulary.reduction import axes, bound_of_reduction, removed_axes

aten = torch.ops.aten


def max_pool(dims: int) -> Operation:
    target = getattr(aten, f"max_pool{dims}d").default

    def lower(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
              ceil_mode: bool = False, return_indices: bool = False) -> Any:
        kernel = per_axis(kernel_size, dims)
        stride = kernel if stride in (None, []) else per_axis(stride, dims)
        form = (kernel, stride, per_axis(padding, dims), per_axis(dilation, dims), ceil_mode)
        values = target(input, *form)
        return (values, pool_indices(input, dims, *form)) if return_indices else values

    def bind(a: Arguments, operand: str) -> MaxPool:
        kernel = per_axis(a["kernel_size"], dims)
        stride = kernel if a["stride"] in (None, []) else per_axis(a["stride"], dims)
        return MaxPool(kernel, stride, per_axis(a["padding"], dims), per_axis(a["dilation"], dims), a["ceil_mode"])

    functions = (getattr(F, f"max_pool{dims}d"), getattr(torch, f"max_pool{dims}d"))
    return Operation(
        target, Kind.SELECTION, functions=functions, lower=lower, bind=bind, sign=Sign.KEEPS, channels=behind_batch
    )


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
        target, Kind.SELECTION, functions=(function,), lower=lower, bind=bind, sign=Sign.KEEPS, outputs_many=True,
        chooses=True, channels=behind_batch,
    )


def bind_extremum(*, largest: bool) -> Any:
    def bind(a: Arguments, operand: str) -> Extremum:
        dim = a.get("dim")
        return Extremum([dim] if isinstance(dim, int) else list(dim or []), a.get("keepdim", False), largest)

    return bind


def reduced_extremum(name: str) -> Operation:
    """``amax`` and ``amin``: values alone."""
    target = getattr(aten, name).default

    def lower(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
        return target(input, axes(dim) or [], keepdim)

    return Operation(
        target, Kind.SELECTION, functions=(getattr(torch, name),), methods=(name,), lower=lower,
        bind=bind_extremum(largest=name == "amax"), sign=Sign.KEEPS, bound=bound_of_reduction, batch=removed_axes,
        channels=reduced,
    )


def extremum(name: str) -> Operation:
    """``max`` and ``min``: over an axis they return indices as well; of two tensors, the larger elements."""
    target = getattr(aten, name).dim
    whole = getattr(aten, f"a{name}").default
    pairwise = getattr(aten, f"{name}imum").default

    def lower(input: Any, *args: Any, **kwargs: Any) -> Any:
        other = args[0] if args else kwargs.get("other", kwargs.get("dim"))
        if other is None:
            return whole(input, [], False)
        if not isinstance(other, int):
            return pairwise(input, other)
        keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
        return target(input, other, keepdim)

    return Operation(
        target, Kind.SELECTION, functions=(getattr(torch, name),), methods=(name,), lower=lower,
        bind=bind_extremum(largest=name == "max"), outputs_many=True, chooses=True, sign=Sign.KEEPS, batch=removed_axes,
        channels=reduced,
        aten={getattr(aten, name).default: lambda self: whole(self, [], False)},
    )


def lower_topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return aten.topk.default(input, k, dim, largest, sorted)


def lower_sort(input: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    if stable:  # which of equals comes first is a part of the function
        return aten.sort.stable(input, stable=True, dim=dim, descending=descending)
    return aten.sort.default(input, dim, descending)


def back_to_places(r: Any, a: Arguments) -> Any:
    return unsort(r, a["output"], a["self"].shape, a["dim"])


OPERATIONS = [
    *(max_pool(dims) for dims in (1, 2, 3)),
    *(adaptive_max_pool(dims) for dims in (1, 2, 3)),
    *(reduced_extremum(name) for name in ("amax", "amin")),
    *(extremum(name) for name in ("max", "min")),
    Operation(
        aten.topk.default, Kind.ROUTING, functions=(torch.topk,), methods=("topk",), lower=lower_topk,
        transpose=back_to_places, outputs_many=True, chooses=True, sign=Sign.KEEPS, bound=Bound.KEEPS, cuts=True,
    ),
    Operation(
        aten.sort.default, Kind.ROUTING, functions=(torch.sort,), methods=("sort",), lower=lower_sort,
        transpose=back_to_places, outputs_many=True, chooses=True, sign=Sign.KEEPS, bound=Bound.KEEPS, cuts=True,
    ),
    Operation(
        aten.sort.stable, Kind.ROUTING, lower=lower_sort, transpose=back_to_places, outputs_many=True, chooses=True,
        sign=Sign.KEEPS, bound=Bound.KEEPS, cuts=True,
    ),
]
