"""Rules for normalisations that do more than pass relevance on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxlrp.errors import RuleError
from fxlrp.rules.primitives import primitive, stabilize
from fxlrp.rules.rule import BIAS, Rule, Shares


class NormEpsilon(Rule):
    """The ε rule through a norm whose deviation is held constant (AttnLRP, Prop. 3.4).

    The norm is then a linear map, minus its mean and times weight over deviation, plus a bias.

    Args:
        epsilon: the stabiliser.
    """

    def __init__(self, epsilon: float = 1e-6) -> None:
        if not epsilon > 0:
            raise RuleError(f"the ε rule of a norm needs a positive epsilon, not {epsilon!r}")
        self.epsilon = epsilon

    def __call__(self, relevance: Tensor, x: Tensor, output: Tensor, back: Callable[[Tensor], Tensor]) -> Shares:
        """Share ``relevance`` of the norm's ``output`` out over ``x``; ``back`` is the transposed map."""
        s = relevance / stabilize(output, self.epsilon)
        share = x * back(s)
        return Shares([share], {BIAS: lambda: relevance - share})


@primitive
def layer_norm_back(s: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    """The transpose of a layer norm whose deviation is held constant."""
    axes = tuple(range(-len(shape), 0))
    deviation = (x.var(dim=axes, keepdim=True, unbiased=False) + eps).sqrt()
    c = (s if weight is None else s * weight) / deviation
    return c - c.mean(dim=axes, keepdim=True)


@primitive
def rms_norm_back(s: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """The transpose of an RMS norm whose deviation is held constant."""
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    deviation = (x.square().mean(dim=axes, keepdim=True) + eps).sqrt()
    return (s if weight is None else s * weight) / deviation


@primitive
def group_norm_back(s: Tensor, x: Tensor, groups: int, weight: Tensor | None, eps: float) -> Tensor:
    """The transpose of a group norm whose deviation is held constant."""
    c = s if weight is None else s * weight.reshape(-1, *[1] * (x.dim() - 2))
    parts = x.reshape(x.shape[0], groups, -1)
    deviation = (parts.var(dim=2, keepdim=True, unbiased=False) + eps).sqrt()
    c = c.reshape(x.shape[0], groups, -1) / deviation
    return (c - c.mean(dim=2, keepdim=True)).reshape(x.shape)
