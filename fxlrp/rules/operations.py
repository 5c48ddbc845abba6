"""Linear operations, seen the way linear rules need them.

A linear operation offers three things: *apply* to an input with given weights, its
*transpose*, and (held by the caller) its weights. Rules are written once, for all.

Shapes: ``x`` and what ``transpose`` returns are the operand's, (batch, ...); ``z`` and
``s`` are the output's. Operations without weights (pooling, mean, sum) take ``None``;
their fixed weights are never negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.rules.primitives import primitive

aten = torch.ops.aten

Weight = Any
"""A tensor; ``None`` for operations that have no weights."""


class LinearOperation:
    """A map that is linear in ``x`` once the weights are fixed."""

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        """The operation at ``x`` with ``weight`` in place of its own weights, without bias."""
        raise NotImplementedError

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        """The transposed operation at ``s``; ``x`` gives the shape of the operand."""
        raise NotImplementedError

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        """``bias`` in a shape that adds to the output."""
        return bias

    def without_negative_weights(self) -> LinearOperation:
        """For fixed weights that may be negative: what stands for their positive part."""
        return self


_CONVOLUTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED_CONVOLUTION: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_AVERAGE_POOL: dict[int, Any] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@primitive
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
class Convolution(LinearOperation):
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


@primitive
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
class TransposedConvolution(LinearOperation):
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


@dataclass(frozen=True)
class Dense(LinearOperation):
    """``x @ weight.T`` over the last axis; weights (out, in)."""

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return F.linear(x, weight)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return torch.matmul(s, weight)


def too_small(x: Tensor, kernel: list[int], padding: list[int]) -> bool:
    """Whether torch's average pooling over volumes would refuse ``x``, unlike its max pooling."""
    return len(kernel) == 3 and any(padding) and any(n < k for n, k in zip(x.shape[2:], kernel, strict=True))


def padded_by(x: Tensor, padding: list[int]) -> Tensor:
    """``x`` with its padding written out."""
    return aten.constant_pad_nd(x, [p for p in reversed(padding) for _ in range(2)])


@primitive
def average_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Tensor:
    """Average pooling over ``len(kernel)`` axes."""
    pool = _AVERAGE_POOL[len(kernel)]
    if too_small(x, kernel, padding):
        x, padding = padded_by(x, padding), [0] * len(kernel)
    return pool(x, kernel, stride, padding, ceil_mode, count_include_pad, *([] if len(kernel) == 1 else [divisor]))


@primitive
def average_pool_transpose(
    s: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Tensor:
    """The transpose of average pooling, in the shape of ``x``."""
    if too_small(x, kernel, padding):
        inside = average_pool_transpose(
            s, padded_by(x, padding), kernel, stride, [0] * len(kernel), ceil_mode, count_include_pad, divisor
        )
        return aten.constant_pad_nd(inside, [-p for p in reversed(padding) for _ in range(2)])
    if len(kernel) == 3:
        return aten.avg_pool3d_backward(s, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    if len(kernel) == 1:
        return aten.avg_pool2d_backward(
            s.unsqueeze(-2), x.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding],
            ceil_mode, count_include_pad, divisor,
        ).squeeze(-2)
    return aten.avg_pool2d_backward(s, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)


@dataclass(frozen=True)
class AveragePool(LinearOperation):
    """Average pooling over ``len(kernel)`` axes."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return average_pool(
            x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor
        )

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return average_pool_transpose(
            s, x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor
        )


@primitive
def window_sum(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The sum over each window, channel by channel."""
    dims = len(kernel)
    flat = x.reshape(-1, 1, *x.shape[2:])
    z = _CONVOLUTION[dims](flat, x.new_ones(1, 1, *kernel), None, stride, padding, dilation)
    return z.reshape(*x.shape[:2], *z.shape[2:])


@primitive
def window_sum_transpose(
    s: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The transpose of :func:`window_sum`, in the shape of ``x``."""
    c = convolution_transpose(
        s.reshape(-1, 1, *s.shape[2:]), s.new_ones(1, 1, *kernel), x.reshape(-1, 1, *x.shape[2:]),
        stride, padding, dilation, 1,
    )
    return c.reshape(x.shape)


@dataclass(frozen=True)
class WindowSum(LinearOperation):
    """The sum over each window, with dilation: what dilated max pooling looks at."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return window_sum(x, self.kernel, self.stride, self.padding, self.dilation)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return window_sum_transpose(s, x, self.kernel, self.stride, self.padding, self.dilation)


@primitive
def adaptive_average_pool_transpose(s: Tensor, x: Tensor, dims: int) -> Tensor:
    """The transpose of adaptive average pooling, in the shape of ``x``."""
    if dims == 3:
        return aten._adaptive_avg_pool3d_backward(s, x)
    if dims == 1:
        return aten._adaptive_avg_pool2d_backward(s.unsqueeze(-2), x.unsqueeze(-2)).squeeze(-2)
    return aten._adaptive_avg_pool2d_backward(s, x)


@dataclass(frozen=True)
class AdaptiveAveragePool(LinearOperation):
    """Adaptive average pooling to ``size`` (one entry an axis)."""

    size: list[int]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return _ADAPTIVE_AVERAGE_POOL[len(self.size)](x, self.size)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return adaptive_average_pool_transpose(s, x, len(self.size))


@primitive
def reduce_transpose(s: Tensor, x: Tensor, dim: list[int] | None, keepdim: bool, mean: bool) -> Tensor:
    """The transpose of a mean or a sum over ``dim``, in the shape of ``x``."""
    axes = sorted(d % x.dim() for d in (range(x.dim()) if dim is None else dim))
    if not keepdim:
        for axis in axes:
            s = s.unsqueeze(axis)
    if mean:
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        s = s / count
    return s.expand(x.shape)


@dataclass(frozen=True)
class Reduction(LinearOperation):
    """The mean or the sum over ``dim`` (``None``: every axis)."""

    dim: list[int] | None
    keepdim: bool = False
    mean: bool = True

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        reduce = torch.mean if self.mean else torch.sum
        return reduce(x, dim=self.dim, keepdim=self.keepdim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return reduce_transpose(s, x, self.dim, self.keepdim, self.mean)


@dataclass(frozen=True)
class WeightedReduction(LinearOperation):
    """The sum over ``dim`` of ``x`` times weights of its own shape: a statistic, each element's part in it held."""

    dim: list[int] | None
    keepdim: bool = False

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return torch.sum(x * weight, dim=self.dim, keepdim=self.keepdim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return weight * reduce_transpose(s, x, self.dim, self.keepdim, False)


@primitive
def norm_weights(x: Tensor, order: float) -> Tensor:
    """``w`` with ``Σ x_i w_i = Σ |x_i|^p``."""
    return x if order == 2 else x.sign() * x.abs() ** (order - 1)


@primitive
def deviation_weights(x: Tensor, dim: list[int] | None) -> Tensor:
    """``w`` with ``Σ x_i w_i = Σ (x_i − mean)²``."""
    return x - x.mean(dim=dim, keepdim=True)


@primitive
def soft_weights(x: Tensor, dim: list[int]) -> Tensor:
    """The softmax over the axes ``dim``: each element's part in their ``logsumexp``."""
    return (x - x.logsumexp(dim=dim, keepdim=True)).exp()


@primitive
def upsample_transpose(
    s: Tensor, x: Tensor, mode: str, align_corners: bool | None, scales: list[float] | None
) -> Tensor:
    """The transpose of upsampling, in the shape of ``x``."""
    backward = getattr(aten, f"upsample_{mode}_backward")
    corners = [] if align_corners is None else [align_corners]
    factors = list(scales) if scales is not None else [None] * (x.dim() - 2)
    return backward(s, s.shape[2:], x.shape, *corners, *factors)


@dataclass(frozen=True)
class Upsample(LinearOperation):
    """Interpolation; ``mode`` as ATen names it, such as ``"bilinear2d"``."""

    mode: str
    size: list[int] | None
    align_corners: bool | None
    scales: list[float] | None

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        corners = [] if self.align_corners is None else [self.align_corners]
        return getattr(aten, f"upsample_{self.mode}").vec(x, self.size, *corners, self.scales)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return upsample_transpose(s, x, self.mode, self.align_corners, self.scales)

    def without_negative_weights(self) -> LinearOperation:
        # The side lobes of a cubic kernel are negative; its main lobe is close to the linear one.
        return replace(self, mode=self.mode.replace("bicubic", "bilinear"))


@primitive
def fold(x: Tensor, size: list[int], kernel: list[int], dilation: list[int], padding: list[int],
         stride: list[int]) -> Tensor:
    """Patches (batch, channels · kernel, windows) added up to an image."""
    return aten.col2im(x, size, kernel, dilation, padding, stride)


@primitive
def unfold(x: Tensor, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]) -> Tensor:
    """The patches of an image, (batch, channels · kernel, windows)."""
    return aten.im2col(x, kernel, dilation, padding, stride)


@dataclass(frozen=True)
class Fold(LinearOperation):
    """Overlapping patches added up to an image."""

    size: list[int]
    kernel: list[int]
    dilation: list[int]
    padding: list[int]
    stride: list[int]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return fold(x, self.size, self.kernel, self.dilation, self.padding, self.stride)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return unfold(s, self.kernel, self.dilation, self.padding, self.stride)


@dataclass(frozen=True)
class CumulativeSum(LinearOperation):
    """The running sum along an axis."""

    dim: int

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return x.cumsum(self.dim)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return s.flip(self.dim).cumsum(self.dim).flip(self.dim)
