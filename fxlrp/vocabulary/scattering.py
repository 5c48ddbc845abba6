"""Operations that write to places: scatter and index writes, and their sums."""

from __future__ import annotations

from typing import Any

import torch

from fxlrp.steps import routing as back
from fxlrp.steps import scattering
from fxlrp.steps.scattering import IndexSum, PlacedSum, ScatterSum
from fxlrp.vocabulary.arithmetic import is_scalar
from fxlrp.vocabulary.batch import batch_summed, batch_written
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Sign, Unsupported

aten = torch.ops.aten


def added(input: Any, contribution: Any) -> Any:
    """``input`` and what is scattered onto it; both may carry signal."""
    return aten.add.Tensor(input, contribution)


def lower_scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    return added(input, aten.scatter_add.default(torch.zeros_like(input), dim, index, src))


def lower_index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    source = source if alpha == 1 else aten.mul.Tensor(source, alpha)
    return added(input, aten.index_add.default(torch.zeros_like(input), dim, index, source))


def lower_index_put(input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    if accumulate:
        zeros = torch.zeros_like(input)
        return added(input, aten._index_put_impl.default(zeros, list(indices), values, True))
    return aten.index_put.default(input, list(indices), values)


def lower_scatter(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: Any = None) -> Any:
    src = value if src is None else src
    if reduce is not None:
        src = torch.full_like(index, src, dtype=input.dtype) if is_scalar(src) else src
        return lower_scatter_reduce(input, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])
    if is_scalar(src):
        return aten.scatter.value(input, dim, index, src)
    return aten.scatter.src(input, dim, index, src)


def lower_scatter_reduce(input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """By the sum of the elements, each weighted with its part in the result, which is held constant."""
    zeros = torch.zeros_like(input)
    count = scattering.arrivals(input, dim, index)
    if reduce in ("amax", "amin"):
        weights = scattering.extreme_parts(src, input, dim, index, reduce)
        chosen = aten.mul.Tensor(aten.masked_fill.Scalar(src, torch.eq(weights, 0), 0.0), weights)
        result = aten.scatter_add.default(zeros, dim, index, chosen)
        if include_self:
            larger = getattr(aten, {"amax": "maximum", "amin": "minimum"}[reduce]).default
            result = larger(result, input)
    elif reduce == "prod":
        weights = scattering.product_parts(src, input, dim, index)
        result = aten.scatter_add.default(zeros, dim, index, aten.mul.Tensor(src, weights))
        if include_self:
            result = aten.mul.Tensor(result, input)
    elif reduce in ("sum", "mean"):
        result = aten.scatter_add.default(zeros, dim, index, src)
        if include_self:
            result, count = added(input, result), count + 1
        if reduce == "mean":
            result = aten.div.Tensor(result, torch.clamp(count, min=1))
        if include_self:
            return result
    else:
        raise Unsupported(f"scatter_reduce with {reduce!r}")
    return aten.where.self(torch.gt(count, 0), result, input)


def lower_index_reduce(input: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    places = scattering.along(index, source, dim)
    return lower_scatter_reduce(input, dim, places, source, reduce, include_self=include_self)


def lower_put(input: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    flat = aten.reshape.default(input, [-1])
    return aten.reshape.default(lower_index_put(flat, [index], source, accumulate), input.shape)


def lower_index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    return aten.index_copy.default(input, dim, index, source)


def lower_index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    return aten.index_fill.int_Scalar(input, dim, index, value)


def lower_masked_scatter(input: Any, mask: Any, source: Any) -> Any:
    return aten.masked_scatter.default(input, mask, source)


def lower_take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    if dim is None:
        raise Unsupported("take_along_dim over all axes at once: name the axis")
    return aten.gather.default(input, dim, back.broadcast_index(indices, input, dim))


def lower_repeat_by_counts(input: Any, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Any:
    if dim is None:
        input, dim = aten.reshape.default(input, [-1]), 0
    if isinstance(repeats, int):
        return aten.repeat_interleave.self_int(input, repeats, dim)
    return aten.index_select.default(input, dim, back.repeated_index(input, repeats, dim, output_size))


def writes(target: Any, transpose: Any, *operands: str, loses: bool = False) -> Operation:
    """What puts values in the place of others."""
    sign = Sign.ANY if loses else Sign.KEEPS
    return Operation(target, Kind.ROUTING, operands=operands, transpose=transpose, sign=sign, loses=loses,
                     batch=batch_written)


def bind_scatter(a: Arguments, operand: str) -> Any:
    return ScatterSum(a["self"], a["dim"], a["index"]), None, None


def bind_index(a: Arguments, operand: str) -> Any:
    return IndexSum(a["self"], a["dim"], a["index"]), None, None


def bind_places(a: Arguments, operand: str) -> Any:
    return PlacedSum(a["self"], a["indices"]), None, None


OPERATIONS = [
    Operation(aten.scatter_add.default, Kind.LINEAR, operands=("src",), bind=bind_scatter, sign=Sign.KEEPS,
              batch=batch_summed),
    Operation(aten.index_add.default, Kind.LINEAR, operands=("source",), bind=bind_index, sign=Sign.KEEPS,
              batch=batch_summed),
    Operation(aten._index_put_impl.default, Kind.LINEAR, operands=("values",), bind=bind_places, sign=Sign.KEEPS,
              batch=batch_written),
    writes(aten.scatter.src, lambda r, a: scattering.unscatter(r, a["dim"], a["index"], a["src"]), "self", "src"),
    writes(aten.scatter.value, lambda r, a: scattering.unscatter_value(r, a["dim"], a["index"]), "self", loses=True),
    writes(aten.index_copy.default, lambda r, a: scattering.uncopy_index(r, a["dim"], a["index"]), "self", "source"),
    writes(aten.index_fill.int_Scalar, lambda r, a: r.index_fill(a["dim"], a["index"], 0), "self", loses=True),
    writes(aten.index_put.default, lambda r, a: scattering.unput(r, a["indices"], a["values"]), "self", "values"),
    writes(aten.masked_scatter.default, lambda r, a: scattering.unscatter_mask(r, a["mask"], a["source"]),
           "self", "source"),
]

COMPOSED = [
    Composed(lower_scatter_add, (torch.scatter_add,), ("scatter_add",), {aten.scatter_add.default: None}),
    Composed(lower_index_add, (torch.index_add,), ("index_add",), {aten.index_add.default: None}),
    Composed(lower_index_put, (torch.index_put,), ("index_put",), {aten.index_put.default: None}),
    Composed(lower_scatter, (torch.scatter,), ("scatter",), dict.fromkeys((
        aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce,
    ))),
    Composed(lower_scatter_reduce, (torch.scatter_reduce,), ("scatter_reduce",), {aten.scatter_reduce.two: None}),
    Composed(lower_index_reduce, (torch.index_reduce,), ("index_reduce",), {aten.index_reduce.default: None}),
    Composed(lower_put, (torch.put,), ("put",), {aten.put.default: None}),
    Composed(lower_index_copy, (torch.index_copy,), ("index_copy",), {aten.index_copy.default: None}),
    Composed(lower_index_fill, (torch.index_fill,), ("index_fill",), {aten.index_fill.int_Scalar: None}),
    Composed(lower_masked_scatter, (torch.masked_scatter,), ("masked_scatter",), {aten.masked_scatter.default: None}),
    Composed(lower_take_along_dim, (torch.take_along_dim,), ("take_along_dim",), {aten.take_along_dim.default: None}),
    Composed(lower_repeat_by_counts, (torch.repeat_interleave,), ("repeat_interleave",),
             {aten.repeat_interleave.self_Tensor: None}),
]
