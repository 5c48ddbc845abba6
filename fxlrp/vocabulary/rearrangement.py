"""Moves that are made of other moves, diagonals, and triangles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.steps import batch_axis
from fxlrp.steps.routing import strided_places, undiagonal
from fxlrp.vocabulary.batch import in_front, rank
from fxlrp.vocabulary.channel_moves import lost
from fxlrp.vocabulary.operation import Arguments, Composed, Unsupported
from fxlrp.vocabulary.routing import lower_expand, lower_flip, move

aten = torch.ops.aten


def lower_rot90(input: Any, k: int = 1, dims: Any = (0, 1)) -> Any:
    first, second = dims
    if k % 4 == 2:
        return lower_flip(input, [first, second])
    if k % 4 == 1:
        return aten.transpose.int(lower_flip(input, [second]), first, second)
    return lower_flip(aten.transpose.int(input, first, second), [second]) if k % 4 == 3 else input


def lower_hstack(tensors: Any) -> Any:
    """Tensors of two axes or more; an export, which knows how many there are, lets torch take all apart."""
    return aten.cat.default(list(tensors), 1)


def lower_diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return aten.diagonal.default(input, offset, dim1, dim2)


def lower_diag_embed(input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    return aten.diag_embed.default(input, offset, dim1, dim2)


def off_diagonal(r: Any, a: Arguments) -> Any:
    """The relevance of the zeros beside a diagonal."""
    form = (a["offset"], a["dim1"], a["dim2"])
    return r - torch.diag_embed(torch.diagonal(r, *form), *form)


def batch_of_diagonal(position: Any, a: Arguments) -> Any:
    """The two axes of a diagonal go, and it comes last."""
    dims = [a["dim1"], a["dim2"]]
    return position if in_front(position, *dims) else batch_axis.removed(position, dims, rank(a, *dims))


def in_memory(value: Tensor) -> list[int]:
    """The axes of a tensor in the order in which they lie in memory, where its elements lie there one by one.

    Raises:
        Unsupported: they do not: some are left out, or lie there once for several.
    """
    sizes, strides = (list(map(_hint, numbers)) for numbers in (value.shape, value.stride()))
    order = sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))
    expected = 1
    for axis in reversed(order):
        if sizes[axis] != 1 and strides[axis] != expected:
            raise Unsupported("reads the memory of a tensor that is a part of another one")
        expected *= sizes[axis]
    return order


def _hint(number: Any) -> int:
    """A size, or that of the example where it is free."""
    return int(number.node.hint or 0) if isinstance(number, torch.SymInt) else int(number)


def lower_as_strided(input: Any, size: Any, stride: Any, storage_offset: Any = None, order: Any = None) -> Any:
    """Elements by their places in memory, where the axes of the input lie in this order; ``None``: as they come."""
    if order is not None and order != sorted(order):
        input = aten.permute.default(input, order)
    places = strided_places(input, size, stride, 0 if storage_offset is None else storage_offset)
    picked = aten.index_select.default(aten.reshape.default(input, [-1]), 0, places)
    return aten.reshape.default(picked, list(size) if isinstance(size, tuple) else size)


def triangle(name: str) -> Any:
    """The lowering of ``tril`` and ``triu``: the other triangle is zero."""
    function = getattr(torch, name)

    def lower(input: Any, diagonal: int = 0) -> Any:
        kept = function(torch.ones_like(input), diagonal)
        return aten.masked_fill.Scalar(input, torch.eq(kept, 0), 0.0)

    return lower


def lower_broadcast_to(input: Any, size: Any) -> Any:
    return lower_expand(input, size)


OPERATIONS = [
    move(
        aten.diagonal.default, lambda r, a: undiagonal(r, a["self"].shape, a["offset"], a["dim1"], a["dim2"]),
        batch=batch_of_diagonal, channels=lost, functions=(torch.diagonal,), methods=("diagonal",),
        lower=lower_diagonal, cuts=True,
    ),
    move(
        aten.diag_embed.default, lambda r, a: torch.diagonal(r, a["offset"], a["dim1"], a["dim2"]), channels=lost,
        functions=(torch.diag_embed,), methods=("diag_embed",), lower=lower_diag_embed, loses=off_diagonal,
    ),
]

COMPOSED = [
    Composed(lower_as_strided, (torch.as_strided,), ("as_strided",), {aten.as_strided.default: None}),
    Composed(lower_rot90, (torch.rot90,), ("rot90",), {aten.rot90.default: None}),
    Composed(lambda input: lower_flip(input, [1]), (torch.fliplr,), ("fliplr",), {aten.fliplr.default: None}),
    Composed(lambda input: lower_flip(input, [0]), (torch.flipud,), ("flipud",), {aten.flipud.default: None}),
    Composed(lower_hstack, (torch.hstack, torch.column_stack)),
    Composed(triangle("tril"), (torch.tril,), ("tril",), {aten.tril.default: None}),
    Composed(triangle("triu"), (torch.triu,), ("triu",), {aten.triu.default: None}),
    Composed(lower_broadcast_to, (torch.broadcast_to,), ("broadcast_to",), {aten.broadcast_to.default: None}),
]
