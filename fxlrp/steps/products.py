"""Products of two tensors, each linear in one factor while the other is held constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.operations import FixedOperation, LinearOperation, Weight
from fxlrp.steps.primitives import primitive


@primitive
def matmul_transpose(s: Tensor, weight: Tensor, x: Tensor, left: bool) -> Tensor:
    """The transpose of a product with a constant matrix, in the shape of ``x``."""
    if weight.dim() == 1:  # matrix times vector drops an axis
        c = s.unsqueeze(-1) * weight
        return c.sum_to_size(x.shape)
    c = torch.matmul(weight.mT, s) if left else torch.matmul(s, weight.mT)
    return c.sum_to_size(x.shape)


@dataclass(frozen=True)
class MatrixProduct(LinearOperation):
    """``x @ weight``, or ``weight @ x`` where ``left``, by a constant matrix."""

    left: bool = False

    channel_axis = -1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return torch.matmul(weight, x) if self.left else torch.matmul(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return matmul_transpose(s, weight, x, self.left)


@primitive
def attention_scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """``scale · Q Kᵀ``, (batch, heads, queries, keys); a group of heads may share a key."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.matmul(query * factor, per_head(key, query).mT)


@primitive
def masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scores with −∞ where a query must not look at a key; an additive mask is added."""
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask


@primitive
def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """``softmax(scale · Q Kᵀ + mask)``; zeros for a query that may look at no key."""
    return softmax_rows(masked(attention_scores(query, key, scale), mask, causal))


@primitive
def softmax_rows(scores: Tensor) -> Tensor:
    """Softmax over the last axis; a row of −∞ becomes zeros, not NaN."""
    weights = scores.softmax(dim=-1)
    return weights.masked_fill((scores == float("-inf")).all(dim=-1, keepdim=True), 0)


def per_head(shared: Tensor, like: Tensor) -> Tensor:
    """Keys or values, one for each head of ``like``: grouped heads get copies."""
    if shared.dim() < 3 or shared.shape[-3] == like.shape[-3] or shared.shape[-3] == 1:
        return shared
    return shared.repeat_interleave(like.shape[-3] // shared.shape[-3], dim=-3)


@primitive
def per_group(relevance: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of :func:`per_head`: the sum over the heads that share one of ``shape``."""
    if len(shape) >= 3 and shape[-3] not in (1, relevance.shape[-3]):
        heads, groups = relevance.shape[-3], shape[-3]
        relevance = relevance.reshape(*relevance.shape[:-3], groups, heads // groups, *relevance.shape[-2:]).sum(dim=-3)
    return relevance.sum_to_size(shape)


@primitive
def weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """``A V``, values shared by the heads of a group repeated."""
    return torch.matmul(weight, per_head(x, weight))


@primitive
def weighted_sum_transpose(s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """``Aᵀ s`` in the shape of the values ``x``."""
    return per_group(torch.matmul(weight.mT, s), x.shape)


@dataclass(frozen=True)
class WeightedSum(LinearOperation):
    """The values of an attention, weighted: ``A V``; weights (batch, heads, queries, keys)."""

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return weighted_sum(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return weighted_sum_transpose(s, weight, x)


@primitive
def einsum_transpose(s: Tensor, weight: Tensor | None, x: Tensor, equation: str, index: int) -> Tensor:
    """The transpose of an Einstein sum in its operand ``index``, in the shape of ``x``."""
    inputs, result = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    others = [term for i, term in enumerate(terms) if i != index]
    known = set(result).union(*others)
    kept = "".join(letter for letter in terms[index] if letter in known)
    c = torch.einsum(f"{','.join([result, *others])}->{kept}", s, *([] if weight is None else [weight]))
    for axis, letter in enumerate(terms[index]):
        if letter not in known:  # it was summed over: every element gets the same
            c = c.unsqueeze(axis)
    return c.expand(x.shape)


@dataclass(frozen=True)
class EinsteinSum(FixedOperation):
    """An Einstein sum of one or two tensors, linear in operand ``index``."""

    equation: str
    index: int

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        if weight is None:
            return torch.einsum(self.equation, x)
        return torch.einsum(self.equation, *((x, weight) if self.index == 0 else (weight, x)))

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return einsum_transpose(s, weight, x, self.equation, self.index)

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        # Without a second tensor its weights are ones.
        return super().changed(weight, change) if weight is None else (self, change(weight))
