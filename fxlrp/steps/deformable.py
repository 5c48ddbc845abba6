"""Deformable convolution: linear in the image, the places that it looks at and their weights held constant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LinearOperation, Weight


@dataclass(frozen=True)
class DeformableConvolution(LinearOperation):
    """``torchvision.ops.deform_conv2d``; ``form`` are the strides, paddings, dilations, groups and the mask's use."""

    offset: Tensor
    mask: Tensor
    form: tuple[int, ...]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return deformable(x, weight, self.offset, self.mask, self.form)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return deformable_transpose(s, weight, x, self.offset, self.mask, self.form)

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        return bias.reshape(-1, 1, 1)


@primitive
def deformable(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, form: tuple[int, ...]) -> Tensor:
    """The convolution without bias."""
    return torch.ops.torchvision.deform_conv2d(x, weight, offset, mask, weight.new_zeros(weight.shape[0]), *form)


@primitive(linear="first")
def deformable_transpose(
    s: Tensor, weight: Tensor, x: Tensor, offset: Tensor, mask: Tensor, form: tuple[int, ...]
) -> Tensor:
    """The transpose of :func:`deformable`, in the shape of ``x``."""
    bias = weight.new_zeros(weight.shape[0])
    back = torch.ops.torchvision._deform_conv2d_backward
    return back(s.contiguous(), x, weight, offset, mask, bias, *form)[0]
