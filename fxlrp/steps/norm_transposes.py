"""Normalisations as linear maps: their scale and shift per channel, and their transposes, deviations held constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive


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
    """One value per channel, (channels,), in a shape that adds to all that is like ``x``, (batch, channels, ...)."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


@primitive
def all_over(values: Tensor, x: Tensor) -> Tensor:
    """One value per channel, (channels,), all over one item like those of ``x``."""
    return in_channels(values, x).expand(1, *x.shape[1:])


@primitive(linear="first")
def batch_norm_back(s: Tensor, weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """The transpose of a batch norm in eval mode."""
    scale = batch_norm_scale(weight, var, eps)
    return s * scale.reshape(1, -1, *[1] * (s.dim() - 2))


@primitive(linear="first")
def layer_norm_back(s: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    """The transpose of a layer norm whose deviation is held constant."""
    axes = tuple(range(-len(shape), 0))
    c = (s if weight is None else s * weight) / _deviation(x, axes, eps)
    return c - c.mean(dim=axes, keepdim=True)


@primitive(linear="first")
def rms_norm_back(s: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """The transpose of an RMS norm whose deviation is held constant."""
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    deviation = (x.square().mean(dim=axes, keepdim=True) + eps).sqrt()
    return (s if weight is None else s * weight) / deviation


@primitive(linear="first")
def group_norm_back(s: Tensor, x: Tensor, groups: int, weight: Tensor | None, eps: float) -> Tensor:
    """The transpose of a group norm whose deviation is held constant."""
    c = s if weight is None else s * weight.reshape(-1, *[1] * (x.dim() - 2))
    parts = x.reshape(x.shape[0], groups, -1)
    c = c.reshape(x.shape[0], groups, -1) / _deviation(parts, (2,), eps)
    return (c - c.mean(dim=2, keepdim=True)).reshape(x.shape)


def _deviation(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """The root of variance + ``eps`` over ``axes``: two means, because ``Tensor.var`` takes seven times as long."""
    centred = x - x.mean(dim=axes, keepdim=True)
    return (centred.square().mean(dim=axes, keepdim=True) + eps).sqrt()
