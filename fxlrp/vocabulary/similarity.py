"""Similarities, distances and bilinear forms, as the products and sums that they are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps.routing import pair_rows
from fxlrp.vocabulary.arithmetic import lower_sub
from fxlrp.vocabulary.operation import Composed, Unsupported
from fxlrp.vocabulary.reduction import lower_norm

aten = torch.ops.aten


def lower_cosine(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """The sum of the products of two normed vectors; the lengths are held constant, as those of norms are."""
    norms = [aten.clamp_min.default(lower_norm(x, 2, dim, True), eps) for x in (x1, x2)]
    normed = [aten.div.Tensor(x, norm) for x, norm in zip((x1, x2), norms, strict=True)]
    return aten.sum.dim_IntList(aten.mul.Tensor(*normed), [dim], False)


def lower_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return length(aten.add.Tensor(lower_sub(x1, x2), eps), p, keepdim)


def length(x: Any, p: float, keepdim: bool = False) -> Any:
    """The norm of order ``p`` over the last axis."""
    if p == float("inf"):
        return aten.amax.default(aten.abs.default(x), [-1], keepdim)
    return lower_norm(x, p, -1, keepdim)


def lower_cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    return length(lower_sub(aten.unsqueeze.default(x1, -2), aten.unsqueeze.default(x2, -3)), p)


def lower_pdist(input: Any, p: float = 2.0) -> Any:
    """The distances of all pairs of rows, as in the upper triangle of those by :func:`lower_cdist`."""
    first, second = (pair_rows(input, place) for place in (0, 1))
    rows = [aten.index_select.default(input, 0, index) for index in (first, second)]
    return length(aten.sub.Tensor(*rows), p)


def lower_covariance(input: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    """That of the rows of a matrix."""
    if fweights is not None or aweights is not None:
        raise Unsupported("a weighted covariance")
    centred = aten.sub.Tensor(input, aten.mean.dim(input, [1], True))
    product = aten.matmul.default(centred, aten.transpose.int(centred, 0, 1))
    return aten.div.Tensor(product, input.shape[1] - correction)


def lower_correlation(input: Any) -> Any:
    """The covariance over the deviations of both rows, which are held constant, as those of norms are."""
    covariance = lower_covariance(input)
    deviation = aten.sqrt.default(aten.diagonal.default(covariance, 0, 0, 1))
    for dim in (1, 0):
        covariance = aten.div.Tensor(covariance, aten.unsqueeze.default(deviation, dim))
    return aten.clamp.default(covariance, -1, 1)


def lower_bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    """One linear layer for each result, applied to the first input, and a product with the second."""
    results, features, others = (int(size) for size in weight.shape)
    matrix = aten.reshape.default(aten.transpose.int(weight, 1, 2), [results * others, features])
    forms = aten.unflatten.int(aten.linear.default(input1, matrix), -1, [results, others])
    products = aten.squeeze.dims(aten.matmul.default(forms, aten.unsqueeze.default(input2, -1)), [-1])
    return products if bias is None else aten.add.Tensor(products, bias)


def lower_cross(input: Any, other: Any, dim: int = -1) -> Any:
    """``a × b``, component by component, by two turned copies."""
    turned = [[aten.roll.default(x, [-shift], [dim]) for shift in (1, 2)] for x in (input, other)]
    (a1, a2), (b1, b2) = turned
    return aten.sub.Tensor(aten.mul.Tensor(a1, b2), aten.mul.Tensor(a2, b1))


def lower_cross_of_axis(input: Any, other: Any, dim: Any = None) -> Any:
    return lower_cross(input, other, -1 if dim is None else dim)


COMPOSED = [
    Composed(lower_cosine, (F.cosine_similarity, torch.cosine_similarity), (), {aten.cosine_similarity.default: None}),
    Composed(lower_distance, (F.pairwise_distance, torch.pairwise_distance), (),
             {aten.pairwise_distance.default: None}),
    Composed(lower_cdist, (torch.cdist,), (), {aten.cdist.default: None, aten._cdist_forward.default: None}),
    Composed(lower_pdist, (F.pdist, torch.pdist), (), {aten.pdist.default: None, aten._pdist_forward.default: None}),
    Composed(lower_covariance, (torch.cov,), ("cov",), {aten.cov.default: None}),
    Composed(lower_correlation, (torch.corrcoef,), ("corrcoef",), {aten.corrcoef.default: None}),
    Composed(lower_bilinear, (F.bilinear, torch.bilinear), (), {aten.bilinear.default: None}),
    Composed(lower_cross, (torch.linalg.cross,), (), {aten.linalg_cross.default: None}),
    Composed(lower_cross_of_axis, (torch.cross,), ("cross",), {aten.cross.default: None}),
]
