"""Which steps of the relevance graph are linear in relevance, and what is done about the others.

A part of the relevance (what goes through some channels) is propagated by the steps that
propagate all of it, so they must be linear: parts then add up to the whole. A step that is
not linear says with :func:`~fxlrp.steps.primitives.along` how it acts on a part at the
relevance of the whole. A new step of a rule is named here, or says so, or else it stops
conditions with an error.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.rules import gradient, join, norm, product, selection, starts
from fxlrp.steps import (
    batch_axis,
    operations,
    pooling,
    primitives,
    products,
    reductions,
    routing,
    separable,
)


class Linear(Enum):
    """In which of its arguments a step is linear."""

    FIRST = "first"
    """In the first one, a tensor or several; the others do not depend on relevance."""
    JOINTLY = "jointly"
    """In all of them together, as a sum is."""
    EITHER = "either"
    """In any one of them, as a product is."""
    NONE = "none"
    """In none: relevance is asked for its shape, and the result does not depend on it."""


_FIRST: list[Any] = [
    operator.truediv, operator.neg, operator.getitem, torch.zeros_like, torch.sum, torch.neg, torch.cat, torch.stack,
    torch.flip, torch.cumsum, torch.roll, torch.reshape, torch.permute, F.pixel_shuffle, F.pixel_unshuffle,
    primitives.divide, primitives.where_vanished, primitives.without_padding, primitives.fit, primitives.full,
    batch_axis.item_sum, starts.total, starts.select_target, join.ratio_split, join.signed_split,
    join.kept_by_stabilizer,
    operations.convolution_transpose, operations.transposed_convolution_transpose,
    pooling.average_pool_transpose, pooling.window_sum_transpose, pooling.adaptive_average_pool_transpose,
    pooling.upsample_transpose, pooling.fold, pooling.unfold,
    reductions.reduce_transpose,
    products.matmul_transpose, products.weighted_sum_transpose, products.einsum_transpose, products.per_group,
    norm.layer_norm_back, norm.rms_norm_back, norm.group_norm_back, norm.batch_norm_back,
    gradient.vector_jacobian, separable.by_axis_transpose,
    selection.to_winners, selection.to_largest,
    routing.unreshape, routing.unpermute, routing.unslice, routing.unselect, routing.unpad, routing.outside,
    routing.unrepeat, routing.uncat, routing.unsplit, routing.unstack, routing.rebind, routing.unroll,
    routing.unpad_border, routing.unchannel_shuffle, routing.unrepeat_interleave, routing.fold_axis,
    routing.fold_patches, routing.unindex, routing.unindex_select, routing.ungather, routing.keep, routing.drop,
    routing.unscatter_slice, routing.unscatter_select, routing.unsort,
]  # fmt: skip

LINEAR: dict[Any, Linear] = {
    **dict.fromkeys(_FIRST, Linear.FIRST),
    **dict.fromkeys((operator.add, operator.sub, torch.add, torch.sub, product.left_over), Linear.JOINTLY),
    **dict.fromkeys((operator.mul, operator.matmul, torch.mul, torch.matmul, torch.einsum), Linear.EITHER),
    **dict.fromkeys((selection.tiled, torch.ones_like, getattr), Linear.NONE),
}
"""The functions that rules call on relevance."""

METHODS: dict[str, Linear] = {
    **dict.fromkeys(
        ("sum", "mean", "cumsum", "flip", "t", "transpose", "permute", "reshape", "flatten", "unsqueeze", "squeeze",
         "expand", "sum_to_size", "to", "double", "float", "contiguous", "neg", "div"), Linear.FIRST,
    ),
    **dict.fromkeys(("add", "sub"), Linear.JOINTLY),
    **dict.fromkeys(("mul", "matmul"), Linear.EITHER),
    **dict.fromkeys(("size", "dim", "numel"), Linear.NONE),
}  # fmt: skip
"""The methods that rules call on relevance."""

MOVED = frozenset({"T", "mT"})
"""Attributes of relevance that are relevance, moved."""


def part_of(step: Any) -> Callable[..., Any] | None:
    """How ``step``, a function that is not linear, acts on a part of the relevance; ``None`` where it does not say."""
    known: Callable[..., Any] | None = getattr(step, "__dict__", {}).get("along")
    return known


@primitives.primitive
def conditioned(
    relevance: torch.Tensor, mask: torch.Tensor, position: batch_axis.Position | None = None
) -> torch.Tensor:
    """What a condition keeps of the relevance of a module's output.

    Args:
        relevance: (batch, ...), or with the batch elsewhere.
        mask: broadcasts to one item of it, or to ``relevance`` where it has as many axes.
        position: where the batch is; ``None``: in front.
    """
    if mask.dim() < relevance.dim():
        axis = 0 if position is None else position[0] % relevance.dim()
        mask = mask.reshape([1] * (relevance.dim() - 1 - mask.dim()) + list(mask.shape)).unsqueeze(axis)
    return relevance * mask.to(relevance.dtype)


LINEAR[conditioned] = Linear.FIRST
