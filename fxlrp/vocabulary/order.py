"""Statistics of order, and products and scans along an axis."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from fxlrp.steps.declaration import primitive
from fxlrp.steps.held import (
    HeldMap,
    product_weights,
    quantile_weights,
    running_product_weights,
    running_soft_weights,
)
from fxlrp.steps.reduction import WeightedReduction
from fxlrp.vocabulary.channel_moves import reduced
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Sign, Unsupported, known_shape
from fxlrp.vocabulary.reduction import bound_of_reduction, lower_logsumexp, removed_axes

aten = torch.ops.aten


@primitive
def indices_of(choice: str, x: Any, *arguments: Any) -> Any:
    """The indices that a function of torch gives which returns values and indices, called by its name."""
    return getattr(torch, choice)(x, *arguments)[1]


def _over_everything(name: str) -> Unsupported:
    return Unsupported(f"{name} over all axes joins the items of a batch: name the axis")


def lower_picked(choice: str, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """A function that picks one element over an axis, as the median does."""
    if dim is None:
        raise _over_everything(f"a {choice}")
    return _picked(input, dim, keepdim, indices_of(choice, input, dim, True))


def _picked(input: Any, dim: int, keepdim: bool, indices: Any) -> Any:
    values = aten.gather.default(input, dim, indices)
    if keepdim:
        return values, indices
    return aten.squeeze.dims(values, [dim]), torch.squeeze(indices, dim)


def lower_kthvalue(input: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return _picked(input, dim, keepdim, indices_of("kthvalue", input, k, dim, True))


def running(choice: str) -> Any:
    """The lowering of a running maximum or minimum."""

    def lower(input: Any, dim: int) -> Any:
        indices = indices_of(choice, input, dim)
        return aten.gather.default(input, dim, indices), indices

    return lower


def lower_quantile(input: Any, q: Any, dim: Any = None, keepdim: bool = False, *,
                   interpolation: str = "linear") -> Any:
    if dim is None:
        raise _over_everything("a quantile")
    ordered = aten.sort.default(input, dim, False)[0]
    shape = () if isinstance(q, int | float) else known_shape(q)
    if shape is None or not all(isinstance(size, int) for size in shape):
        raise Unsupported("quantiles of which the graph does not say how many there are")
    several = [q[i] for i in range(*shape)] if shape else [q]
    results = []
    for each in several:
        weighted = aten.mul.Tensor(ordered, quantile_weights(ordered, each, dim, interpolation))
        results.append(aten.sum.dim_IntList(weighted, [dim], keepdim))
    return results[0] if several[0] is q else aten.stack.default(results, 0)


def lower_aminmax(input: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        raise _over_everything("aminmax")
    return aten.amin.default(input, [dim], keepdim), aten.amax.default(input, [dim], keepdim)


def lower_msort(input: Any) -> Any:
    return aten.sort.default(input, 0, False)[0]


def lower_prod(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dim is None:
        raise _over_everything("a product")
    return aten.prod.dim_int(input, dim, keepdim)


def lower_cumprod(input: Any, dim: int, *, dtype: Any = None) -> Any:
    return aten.cumprod.default(input, dim)


def lower_logcumsumexp(input: Any, dim: int) -> Any:
    return aten.logcumsumexp.default(input, dim)


def lower_logaddexp(input: Any, other: Any) -> Any:
    like = input + other  # for its shape alone
    return lower_logsumexp(aten.stack.default([aten.expand_as.default(x, like) for x in (input, other)], -1), -1)


def lower_lerp(input: Any, end: Any, weight: Any) -> Any:
    if isinstance(weight, int | float):
        return aten.add.Tensor(aten.mul.Tensor(input, 1 - weight), aten.mul.Tensor(end, weight))
    rest = aten.add.Tensor(aten.neg.default(weight), 1)
    return aten.add.Tensor(aten.mul.Tensor(input, rest), aten.mul.Tensor(end, weight))


def lower_diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    parts = [part for part in (prepend, input, append) if part is not None]
    input = parts[0] if len(parts) == 1 else aten.cat.default(parts, dim)
    for _ in range(n):
        later, earlier = aten.slice.Tensor(input, dim, 1), aten.slice.Tensor(input, dim, 0, -1)
        input = aten.sub.Tensor(later, earlier)
    return input


def _areas(y: Any, x: Any, dx: Any, dim: int) -> Any:
    if x is not None:
        raise Unsupported("a trapezoid rule over given places")
    return aten.mul.Tensor(aten.add.Tensor(aten.slice.Tensor(y, dim, 1), aten.slice.Tensor(y, dim, 0, -1)), dx / 2)


def lower_trapezoid(y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    return aten.sum.dim_IntList(_areas(y, x, dx, dim), [dim], False)


def lower_cumulative_trapezoid(y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    return aten.cumsum.default(_areas(y, x, dx, dim), dim)


def bind_prod(a: Arguments, operand: str) -> Any:
    return WeightedReduction([a["dim"]], a["keepdim"]), product_weights(a["self"], a["dim"]), None


def scan(target: Any, weights: Any, sign: Sign) -> Operation:
    """A running result along an axis, as a sum of what came before."""

    def bind(a: Arguments, operand: str) -> Any:
        return HeldMap(a["dim"]), weights(a["self"], a["dim"]), None

    return Operation(target, Kind.LINEAR, bind=bind, sign=sign)


OPERATIONS = [
    Operation(
        aten.prod.dim_int, Kind.LINEAR, bind=bind_prod, sign=Sign.KEEPS, bound=bound_of_reduction, batch=removed_axes,
        channels=reduced,
    ),
    scan(aten.cumprod.default, running_product_weights, Sign.KEEPS),
    scan(aten.logcumsumexp.default, running_soft_weights, Sign.ANY),
]

COMPOSED = [
    *(
        Composed(partial(lower_picked, name), (getattr(torch, name),), (name,), dict.fromkeys(overloads))
        for name, overloads in (
            ("median", (aten.median.dim, aten.median.default)),
            ("nanmedian", (aten.nanmedian.dim, aten.nanmedian.default)),
            ("mode", (aten.mode.default,)),
        )
    ),
    Composed(lower_kthvalue, (torch.kthvalue,), ("kthvalue",), {aten.kthvalue.default: None}),
    Composed(running("cummax"), (torch.cummax,), ("cummax",), {aten.cummax.default: None}),
    Composed(running("cummin"), (torch.cummin,), ("cummin",), {aten.cummin.default: None}),
    Composed(lower_quantile, (torch.quantile,), ("quantile",),
             {aten.quantile.default: None, aten.quantile.scalar: None}),
    Composed(lower_aminmax, (torch.aminmax,), ("aminmax",), {aten.aminmax.default: None}),
    Composed(lower_msort, (torch.msort,), ("msort",), {aten.msort.default: None}),
    Composed(lower_prod, (torch.prod,), ("prod",), {aten.prod.dim_int: None, aten.prod.default: None}),
    Composed(lower_cumprod, (torch.cumprod,), ("cumprod",), {aten.cumprod.default: None}),
    Composed(lower_logcumsumexp, (torch.logcumsumexp,), ("logcumsumexp",), {aten.logcumsumexp.default: None}),
    Composed(lower_logaddexp, (torch.logaddexp,), ("logaddexp",), {aten.logaddexp.default: None}),
    Composed(lower_lerp, (torch.lerp,), ("lerp",), {aten.lerp.Scalar: None, aten.lerp.Tensor: None}),
    Composed(lower_diff, (torch.diff,), ("diff",), {aten.diff.default: None}),
    Composed(lower_trapezoid, (torch.trapezoid, torch.trapz), (), {aten.trapezoid.dx: lambda y, dx=1, dim=-1:
             lower_trapezoid(y, dx=dx, dim=dim)}),
    Composed(lower_cumulative_trapezoid, (torch.cumulative_trapezoid,), (), {aten.cumulative_trapezoid.dx:
             lambda y, dx=1, dim=-1: lower_cumulative_trapezoid(y, dx=dx, dim=dim)}),
]
