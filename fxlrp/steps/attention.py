"""Scaled dot-product attention: its scores, its weights, and the weighted sum of its values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LinearOperation, Weight


@dataclass(frozen=True)
class Attention:
    """The operands of a scaled dot-product attention.

    Attributes:
        query: (batch, heads, queries, features).
        key, value: (batch, heads, keys, features); a group of query heads may share one.
        mask: boolean (true: may look) or additive, broadcast to the scores; or ``None``.
        causal: whether a query looks at no later key.
        scale: ``None``: features^(−1/2).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None


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


@primitive(linear="first")
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


@primitive(linear="first")
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
def expanded(shared: Tensor, like: Tensor) -> Tensor:
    """Keys or values, one for each head."""
    return per_head(shared, like)


@primitive(linear="jointly")
def left_over(received: list[Tensor], handed_on: list[Tensor]) -> Tensor:
    """What came and did not go on, summed to one number per row of the first axis."""
    return sum_rows(received) - sum_rows(handed_on)


def sum_rows(tensors: list[Tensor]) -> Tensor:
    """The sum over all tensors and all axes but the first."""
    return torch.stack([tensor.flatten(1).sum(dim=1) for tensor in tensors]).sum(dim=0)


@primitive
def of_rows(weights: Tensor) -> Tensor:
    """Zeros in a row of which all is masked: its softmax is NaN, which a model overwrites."""
    return weights.nan_to_num(nan=0.0)


@primitive
def finite(scores: Tensor) -> Tensor:
    """Zeros in place of −∞: what is masked has no share."""
    return scores.masked_fill(scores == float("-inf"), 0)
