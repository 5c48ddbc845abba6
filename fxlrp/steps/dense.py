"""Linear layers as linear operations, and with a norm in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LayerOperation, LinearOperation, Weight


@dataclass(frozen=True)
class Dense(LayerOperation):
    """``x @ weight.T`` over the last axis; weights (out, in)."""

    channel_axis = -1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return F.linear(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return torch.matmul(s, weight)

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return NormedDense(), scale_dense(weight, factors, x, inputs=False)

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return NormedDense(), scale_dense(weight, factors, x, inputs=True)


@dataclass(frozen=True)
class NormedDense(Dense):
    """A linear layer with a norm in it: one matrix, or one for each position along axis 1.

    A norm scales what is along axis 1. Of (batch, features) those are the layer's features; of
    (batch, channels, ..., features) they are not, and the layer becomes another one in each channel.
    """

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return dense(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return dense_transpose(s, weight)


@primitive
def scale_dense(weight: Tensor, factors: Tensor, x: Tensor, inputs: bool) -> Tensor:
    """The weights of a linear layer that reads ``x``, scaled along axis 1 of its inputs or of its outputs."""
    if x.dim() == 2:
        return weight * (factors if inputs else factors[:, None])
    return weight * factors.reshape(-1, *[1] * (x.dim() - 1))


@primitive
def dense(x: Tensor, weight: Tensor) -> Tensor:
    """``weight x`` for each row of ``x``, by its own weights where there are several."""
    return F.linear(x, weight) if weight.dim() == 2 else torch.matmul(weight, x[..., None])[..., 0]


@primitive
def dense_transpose(s: Tensor, weight: Tensor) -> Tensor:
    """The transpose of :func:`dense`."""
    return torch.matmul(s, weight) if weight.dim() == 2 else torch.matmul(weight.mT, s[..., None])[..., 0]
