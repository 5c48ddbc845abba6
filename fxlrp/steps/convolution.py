"""Convolutions and transposed convolutions as linear operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LayerOperation, LinearOperation, Weight


@primitive
def scale_leading(weight: Tensor, factors: Tensor) -> Tensor:
    """Each row of the first axis scaled."""
    return weight * factors.reshape(-1, *[1] * (weight.dim() - 1))


@primitive
def scale_grouped(weight: Tensor, factors: Tensor, groups: int) -> Tensor:
    """The channels of the second axis scaled, those of each group by its own factors."""
    rows, columns, *kernel = weight.shape
    parts = weight.reshape(groups, rows // groups, columns, *kernel)
    return (parts * factors.reshape(groups, 1, columns, *[1] * len(kernel))).reshape(weight.shape)


_CONVOLUTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED_CONVOLUTION: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@primitive(linear="first", fresh=True)
def convolution_transpose(
    s: Tensor, weight: Tensor, x: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:
    """The transpose of a convolution, in the shape of its input ``x``."""
    dims = weight.dim() - 2
    # Rows of x that no window reached are the output padding of the transpose.
    reached = [
        (s.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (weight.shape[2 + d] - 1) + 1
        for d in range(dims)
    ]
    output_padding = [x.shape[2 + d] - reached[d] for d in range(dims)]
    return _TRANSPOSED_CONVOLUTION[dims](s, weight, None, stride, padding, output_padding, groups, dilation)


@dataclass(frozen=True)
class Convolution(LayerOperation):
    """Convolution over ``dims`` axes; weights (out, in / groups, *kernel)."""

    dims: int
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return _CONVOLUTION[self.dims](x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return convolution_transpose(s, weight, x, self.stride, self.padding, self.dilation, self.groups)

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        return bias.reshape(-1, *[1] * self.dims)

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_leading(weight, factors)

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_grouped(weight, factors, self.groups)


@primitive(linear="first")
def transposed_convolution_transpose(
    s: Tensor, weight: Tensor, x: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:
    """The transpose of a transposed convolution: a convolution, cut to the shape of ``x``."""
    dims = weight.dim() - 2
    c = _CONVOLUTION[dims](s, weight, None, stride, padding, dilation, groups)
    for d in range(dims):
        # Output padding beyond the stride would give a row too many.
        c = c.narrow(2 + d, 0, x.shape[2 + d])
    return c


@dataclass(frozen=True)
class TransposedConvolution(LayerOperation):
    """Transposed convolution over ``dims`` axes; weights (in, out / groups, *kernel)."""

    dims: int
    stride: list[int]
    padding: list[int]
    output_padding: list[int]
    dilation: list[int]
    groups: int = 1

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return _TRANSPOSED_CONVOLUTION[self.dims](
            x, weight, None, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return transposed_convolution_transpose(
            s, weight, x, self.stride, self.padding, self.dilation, self.groups
        )

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        return bias.reshape(-1, *[1] * self.dims)

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_grouped(weight, factors, self.groups)

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_leading(weight, factors)
