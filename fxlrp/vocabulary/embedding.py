"""Lookups of integer inputs in tables: where their signal begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps.declaration import primitive
from fxlrp.vocabulary.channel_moves import last
from fxlrp.vocabulary.operation import Composed, Kind, Operation, Unsupported, known_shape
from fxlrp.vocabulary.routing import lower_getitem

aten = torch.ops.aten

_SUM, _MEAN, _MAX = range(3)
_MODES = {"sum": _SUM, "mean": _MEAN, "max": _MAX}


def lower_embedding(input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None,
                    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:
    if max_norm is not None:
        raise Unsupported("an embedding with max_norm changes its weights in forward", final=True)
    return aten.embedding.default(weight, input)


def lower_table(table: Any, index: Any, axis: int = 0, behind: Sequence[Any] = (), rank: int | None = None) -> Any:
    """``table[:, …, index, …]``: an embedding, whatever the shape of its entries.

    Args:
        table: a constant.
        index: the indices.
        axis: the axis of the table that is indexed; those before it are kept.
        behind: what is kept of the axes behind it.
        rank: how many axes the indices have, where that is known.
    """
    shape = known_shape(table)
    behind = [] if all(entry == slice(None) or entry is Ellipsis for entry in behind) else list(behind)
    if (shape is None and (axis or behind)) or (axis and rank is None):
        raise Unsupported("an index behind the first axis of a table, the number of axes not being known")
    if shape is None:
        return aten.embedding.default(table, index)
    others = [other for other in range(len(shape)) if other != axis]
    if axis:
        table = aten.permute.default(table, [axis, *others])
    entries = _entries(table, index, [shape[axis], *(shape[other] for other in others)])
    if axis and rank is not None:
        moved = [rank + other for other in range(len(others))]
        entries = aten.permute.default(entries, [*moved[:axis], *range(rank), *moved[axis:]])
    if behind:
        asked = sum(entry is not None and entry is not Ellipsis for entry in behind)
        left = [slice(None)] * (len(others) - axis - asked)
        at = behind.index(Ellipsis) if Ellipsis in behind else len(behind)
        entries = lower_getitem(entries, (Ellipsis, *behind[:at], *left, *behind[at + 1 :]))
    return entries


def _entries(table: Any, index: Any, shape: Sequence[Any]) -> Any:
    """Entries along the first axis of a table of this shape."""
    if len(shape) == 2:
        return aten.embedding.default(table, index)
    rows = [shape[0], -1] if isinstance(shape[0], int) else [-1, math.prod(shape[1:])]
    entries = aten.embedding.default(aten.reshape.default(table, rows), index)
    return aten.squeeze.dims(entries, [-1]) if len(shape) == 1 else aten.unflatten.int(entries, -1, list(shape[1:]))


def lower_one_hot(input: Any, num_classes: int = -1) -> Any:
    if num_classes == -1:
        raise Unsupported("one_hot without num_classes: how many there are would depend on the input", final=True)
    # Numbers from here on: what adds up or moves codes before it casts them carries their signal as well.
    return aten.to.dtype(aten.one_hot.default(input, num_classes), torch.float32)


def lower_embedding_bag(input: Any, weight: Any, offsets: Any = None, max_norm: Any = None, norm_type: float = 2.0,
                        scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
                        per_sample_weights: Any = None, include_last_offset: bool = False,
                        padding_idx: int | None = None) -> Any:
    if max_norm is not None:
        raise Unsupported("an embedding with max_norm changes its weights in forward", final=True)
    if offsets is not None:
        return lower_flat_bag(
            weight, input, offsets, False, _MODES[mode], False, per_sample_weights, include_last_offset, padding_idx
        )[0]
    entries = aten.embedding.default(weight, input)
    if per_sample_weights is not None:
        entries = aten.mul.Tensor(entries, aten.unsqueeze.default(per_sample_weights, -1))
    if padding_idx is not None:
        padding = torch.unsqueeze(torch.eq(input, padding_idx), -1)
        entries = aten.masked_fill.Scalar(entries, padding, float("-inf") if mode == "max" else 0.0)
    if mode == "max":
        return aten.amax.default(entries, [1], False)
    total = aten.sum.dim_IntList(entries, [1], False)
    return total if mode == "sum" else aten.div.Tensor(total, bag_sizes(input, None, padding_idx))


def lower_flat_bag(weight: Any, indices: Any, offsets: Any, scale_grad_by_freq: bool = False, mode: int = 0,
                   sparse: bool = False, per_sample_weights: Any = None, include_last_offset: bool = False,
                   padding_idx: int | None = None) -> Any:
    """Bags one behind the other, told by where each begins."""
    if mode == _MAX:
        raise Unsupported("an embedding bag by offsets in mode 'max': give it one row for each bag")
    entries = aten.embedding.default(weight, indices)
    if per_sample_weights is not None:
        entries = aten.mul.Tensor(entries, aten.unsqueeze.default(per_sample_weights, -1))
    if padding_idx is not None and not (isinstance(padding_idx, int) and padding_idx < 0):
        entries = aten.masked_fill.Scalar(entries, torch.unsqueeze(torch.eq(indices, padding_idx), -1), 0.0)
    bags = bag_numbers(indices, offsets)
    zeros = empty_bags(entries, offsets, include_last_offset)
    total = aten.index_add.default(zeros, 0, bags, entries)
    if mode == _MEAN:
        total = aten.div.Tensor(total, bag_sizes(indices, bags, padding_idx, zeros))
    return total, None, None, None


@primitive
def bag_numbers(indices: Any, offsets: Any) -> Any:
    """Which bag each index belongs to."""
    positions = torch.arange(indices.shape[0], device=indices.device)
    return torch.searchsorted(offsets.to(torch.int64).contiguous(), positions, right=True) - 1


@primitive
def empty_bags(entries: Any, offsets: Any, include_last_offset: bool) -> Any:
    """Zeros, one row for each bag."""
    return entries.new_zeros(offsets.shape[0] - bool(include_last_offset), *entries.shape[1:])


@primitive
def bag_sizes(indices: Any, bags: Any, padding_idx: int | None, like: Any = None) -> Any:
    """How many entries each bag has, padding not counted: (bags, 1)."""
    counted = torch.ones_like(indices) if padding_idx is None or padding_idx < 0 else (indices != padding_idx).long()
    sizes = counted.sum(1) if bags is None else counted.new_zeros(like.shape[0]).index_add(0, bags, counted)
    return sizes.clamp(min=1).unsqueeze(1)


OPERATIONS = [
    Operation(
        aten.embedding.default, Kind.INPUT, operands=("indices",), functions=(F.embedding,), lower=lower_embedding,
        channels=last,
    ),
    Operation(
        aten.one_hot.default, Kind.INPUT, operands=("self",), functions=(F.one_hot, torch._C._nn.one_hot),
        lower=lower_one_hot, channels=last, aten={aten.one_hot.default: lower_one_hot},
    ),
]

COMPOSED = [
    Composed(lower_embedding_bag, (F.embedding_bag,)),
    Composed(lower_flat_bag, aten=dict.fromkeys((
        aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
        aten._embedding_bag_forward_only.default,
    ))),
]
