"""Rules for normalisations that do more than pass relevance on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.rule import BIAS, Rule, Shares
from fxlrp.steps.primitives import divide, primitive


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
        s = divide(relevance, output, True, self.epsilon)
        share = x * back(s)
        return Shares([share], {BIAS: lambda: relevance - share})


class Fold(Rule):
    """Batch norm in eval mode as a part of the linear operation next to it; relevance passes it unchanged.

    The operation's rule then sees weights and bias with the norm's scale and shift in them: those of
    the operation that the norm follows, or else, where the norm comes first, of the one that reads it
    (Hui & Binder, IWANN 2019; Guillemot et al., arXiv:2002.11018).
    Where there is neither, the norm passes relevance on all the same. The model's tensors stay as they are.
    """

    keeps_sign = True

    def __call__(self, relevance: Tensor) -> Shares:
        """Pass ``relevance`` on."""
        return Shares([relevance])


@primitive
def batch_norm_scale(weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """The factor of each channel in a batch norm in eval mode: (channels,)."""
    deviation = (var + eps).sqrt()
    return 1 / deviation if weight is None else weight / deviation


@primitive
def batch_norm_shift(scale: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
    """What a batch norm in eval mode adds to each channel: (channels,)."""
    return -mean * scale if bias is None else bias - mean * scale


@primitive
def in_channels(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, (channels,), in a shape that adds to all that is like ``x``, (batch, channels, ...)."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


@primitive
def all_over(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, (channels,), all over one item like those of ``x``."""
    return in_channels(values, x).expand(1, *x.shape[1:])


@primitive
def batch_norm_back(s: Tensor, weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """The transpose of a batch norm in eval mode."""
    scale = batch_norm_scale(weight, var, eps)
    return s * scale.reshape(1, -1, *[1] * (s.dim() - 2))


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
