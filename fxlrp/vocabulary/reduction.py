"""Reductions: mean, sum, and the statistics that norms are made of."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps import batch_axis
from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.reduction import (
    CumulativeSum,
    Reduction,
    WeightedReduction,
    deviation_weights,
    norm_weights,
    soft_weights,
)
from fxlrp.vocabulary.batch import in_front
from fxlrp.vocabulary.channel_moves import reduced
from fxlrp.vocabulary.operation import Arguments, Bound, Composed, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten
Bindings = tuple[LinearOperation, Any, Any]


def axes(dim: Any) -> list[int] | None:
    """``dim`` as ATen takes it: a list, or ``None`` for every axis."""
    if dim is None or isinstance(dim, list):
        return dim
    return list(dim) if isinstance(dim, tuple) else [dim]


def removed_axes(position: Any, a: Arguments) -> Any:
    """Where the batch is once the axes ``dim`` are gone."""
    dims = axes(a["dim"]) or []
    if a.get("keepdim") or (dims and in_front(position, *dims)):
        return position
    known = dims and all(d >= 0 for d in dims)
    return batch_axis.removed(position, dims or None, 64 if known else a["self"].dim())


def bound_of_reduction(a: Arguments) -> Bound:
    """A statistic that keeps its axes is there to be broadcast."""
    return Bound.REDUCED if a.get("keepdim") else Bound.NONE


def bind_reduction(*, mean: bool) -> Any:
    def bind(a: Arguments, operand: str) -> Bindings:
        return Reduction(axes(a["dim"]) or None, a.get("keepdim", False), int(mean)), None, None

    return bind


def reduction(target: Any, name: str, **more: Any) -> Operation:
    def lower(input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return target(input, axes(dim), keepdim, **({} if dtype is None else {"dtype": dtype}))

    return Operation(
        target, Kind.LINEAR, functions=(getattr(torch, name),), methods=(name,), lower=lower,
        bind=bind_reduction(mean=name == "mean"), sign=Sign.KEEPS, bound=bound_of_reduction, batch=removed_axes,
        channels=reduced,
        aten={getattr(aten, name).default: lambda self, dtype=None: lower(self, dtype=dtype)}, **more,
    )


def statistic(target: Any, weights: Any, lower: Any, *spellings: Any, methods: tuple[str, ...] = (), aten: Any = None,
              sign: Sign = Sign.NONNEGATIVE) -> Operation:
    """A reduction that is not linear: to each element its own part in it, ``x_i w_i``, the weights held constant."""

    def bind(a: Arguments, operand: str) -> Bindings:
        return WeightedReduction(axes(a["dim"]) or None, a["keepdim"]), weights(a), None

    return Operation(
        target, Kind.LINEAR, functions=spellings, methods=methods, lower=lower, bind=bind, sign=sign,
        bound=bound_of_reduction, batch=removed_axes, channels=reduced, aten=aten or {},
    )


def lower_norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, out: Any = None,
               dtype: Any = None) -> Any:
    order = {"fro": 2, None: 2}.get(p, p)
    if order in (math.inf, -math.inf):
        extreme = aten.amax if order > 0 else aten.amin
        return extreme.default(aten.abs.default(input), axes(dim) or [], keepdim)
    return aten.linalg_vector_norm.default(input, order, axes(dim), keepdim)


def lower_linalg_norm(input: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    if ord not in (None, 2) or not isinstance(dim, int):
        raise Unsupported("a matrix norm")
    return lower_norm(input, 2, dim, keepdim)


def lower_normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    norm = lower_norm(input, p, [dim], True)
    return aten.div.Tensor(input, aten.expand_as.default(aten.clamp_min.default(norm, eps), input))


def deviation(target: Any) -> Any:
    def lower(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
              correction: Any = None) -> Any:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        if correction is None:
            correction = 1 if unbiased is None else int(unbiased)
        return target(input, axes(dim), correction=correction, keepdim=keepdim)

    return lower


def with_mean(name: str) -> Any:
    """``var_mean`` and ``std_mean``: both moments at once."""
    measure = deviation(getattr(aten, name).correction)

    def lower(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
              correction: Any = None) -> Any:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        return measure(input, dim, unbiased, keepdim, correction=correction), aten.mean.dim(input, axes(dim), keepdim)

    return lower


def lower_logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Any:
    return aten.logsumexp.default(input, axes(dim), keepdim)


def lower_cumsum(input: Any, dim: int, dtype: Any = None) -> Any:
    return aten.cumsum.default(input, dim, **({} if dtype is None else {"dtype": dtype}))


def bind_cumsum(a: Arguments, operand: str) -> Bindings:
    return CumulativeSum(a["dim"]), None, None


def lower_vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return lower_norm(x, ord, dim, keepdim)


def lower_dist(input: Any, other: Any, p: Any = 2) -> Any:
    return lower_norm(aten.sub.Tensor(input, other), p)


OPERATIONS: list[Operation] = [
    reduction(aten.mean.dim, "mean"),
    reduction(aten.sum.dim_IntList, "sum"),
    Operation(
        aten.cumsum.default, Kind.LINEAR, functions=(torch.cumsum,), methods=("cumsum",), lower=lower_cumsum,
        bind=bind_cumsum, sign=Sign.KEEPS,
    ),
    statistic(
        aten.linalg_vector_norm.default, lambda a: norm_weights(a["self"], a["ord"]), lower_norm, torch.norm,
        methods=("norm",), aten=dict.fromkeys(
            (aten.norm.ScalarOpt_dim, aten.norm.Scalar, aten.linalg_vector_norm.default), lower_norm
        ),
    ),
    *(
        statistic(
            target, lambda a: deviation_weights(a["self"], axes(a["dim"])), deviation(target), getattr(torch, name),
            methods=(name,), aten={
                target: deviation(target), getattr(aten, name).dim: deviation(target),
                getattr(aten, name).default: deviation(target),
            },
        )
        for name, target in (("var", aten.var.correction), ("std", aten.std.correction))
    ),
    statistic(
        aten.logsumexp.default, lambda a: soft_weights(a["self"], axes(a["dim"]) or []), lower_logsumexp,
        torch.logsumexp, methods=("logsumexp",), sign=Sign.ANY,
    ),
]


COMPOSED = [
    *(
        Composed(with_mean(name), (getattr(torch, f"{name}_mean"),), (), dict.fromkeys(
            (getattr(getattr(aten, f"{name}_mean"), form) for form in ("default", "dim", "correction")), None
        ))
        for name in ("var", "std")
    ),
    Composed(lower_normalize, (F.normalize,)),
    Composed(lower_linalg_norm, (torch.linalg.norm,)),
    Composed(lower_vector_norm, (torch.linalg.vector_norm,)),
    Composed(lower_dist, (torch.dist,), ("dist",), {aten.dist.default: None}),
]
