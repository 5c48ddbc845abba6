"""Pooling, resizing and folding as linear operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.convolution import convolution_transpose
from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight
from fxlrp.steps.primitives import negative, positive
from fxlrp.steps.separable import ByAxis, SeparableOperation, by_axis_transpose

aten = torch.ops.aten

_CONVOLUTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVERAGE_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_AVERAGE_POOL: dict[int, Any] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


def too_small(x: Tensor, kernel: list[int], padding: list[int]) -> bool:
    """Whether torch's average pooling over volumes would refuse ``x``, unlike its max pooling."""
    return len(kernel) == 3 and any(padding) and any(n < k for n, k in zip(x.shape[2:], kernel, strict=True))


def padded_by(x: Tensor, padding: list[int]) -> Tensor:
    """``x`` with its padding written out."""
    return aten.constant_pad_nd(x, [p for p in reversed(padding) for _ in range(2)])


@primitive(fresh=True)
def average_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Tensor:
    """Average pooling over ``len(kernel)`` axes."""
    pool = _AVERAGE_POOL[len(kernel)]
    if too_small(x, kernel, padding):
        x, padding = padded_by(x, padding), [0] * len(kernel)
    return pool(x, kernel, stride, padding, ceil_mode, count_include_pad, *([] if len(kernel) == 1 else [divisor]))


@primitive(linear="first", fresh=True)
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
class AveragePool(SeparableOperation):
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

    def along(self, axis: int) -> LinearOperation:
        divisor = self.divisor if self.divisor is None or axis == 0 else 1  # of the product of all axes
        return replace(
            self, kernel=only(axis, self.kernel), stride=only(axis, self.stride), padding=only(axis, self.padding, 0),
            divisor=divisor,
        )  # fmt: skip


def only(axis: int, values: list[Any], idle: Any = 1) -> list[Any]:
    """The value of one axis, and ``idle`` at the others."""
    return [value if i == axis else idle for i, value in enumerate(values)]


def _beyond(
    sizes: Sequence[int], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """How far windows reach beyond the padding behind each axis in torch's ``ceil_mode``.

    The last window begins within the input or the padding before it.
    """
    beyond = []
    for n, k, step, pad, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        left = n + 2 * pad - d * (k - 1) - 1
        last = -(-left // step)
        last -= last * step >= n + pad
        beyond.append(max(last * step - left, 0))
    return beyond


@primitive
def window_sum(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool = False
) -> Tensor:
    """The sum over each window, channel by channel."""
    dims = len(kernel)
    if ceil_mode:
        beyond = _beyond(x.shape[2:], kernel, stride, padding, dilation)
        x = aten.constant_pad_nd(x, [p for n in reversed(beyond) for p in (0, n)])
    flat = x.reshape(-1, 1, *x.shape[2:])
    z = _CONVOLUTION[dims](flat, x.new_ones(1, 1, *kernel), None, stride, padding, dilation)
    return z.reshape(*x.shape[:2], *z.shape[2:])


@primitive(linear="first", fresh=True)
def window_sum_transpose(
    s: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil_mode: bool = False,
) -> Tensor:
    """The transpose of :func:`window_sum`, in the shape of ``x``."""
    if ceil_mode:
        beyond = _beyond(x.shape[2:], kernel, stride, padding, dilation)
        padded = aten.constant_pad_nd(x, [p for n in reversed(beyond) for p in (0, n)])
        whole = window_sum_transpose(s, padded, kernel, stride, padding, dilation)
        return aten.constant_pad_nd(whole, [p for n in reversed(beyond) for p in (0, -n)])
    c = convolution_transpose(
        s.reshape(-1, 1, *s.shape[2:]), s.new_ones(1, 1, *kernel), x.reshape(-1, 1, *x.shape[2:]),
        stride, padding, dilation, 1,
    )
    return c.reshape(x.shape)


@dataclass(frozen=True)
class WindowSum(FixedOperation):
    """The sum over each window, with dilation: what dilated max pooling looks at."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool = False

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return window_sum(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return window_sum_transpose(s, x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)


@primitive(linear="first", fresh=True)
def adaptive_average_pool_transpose(s: Tensor, x: Tensor, dims: int) -> Tensor:
    """The transpose of adaptive average pooling, in the shape of ``x``."""
    if dims == 3:
        return aten._adaptive_avg_pool3d_backward(s, x)
    if dims == 1:
        return aten._adaptive_avg_pool2d_backward(s.unsqueeze(-2), x.unsqueeze(-2)).squeeze(-2)
    return aten._adaptive_avg_pool2d_backward(s, x)


@dataclass(frozen=True)
class AdaptiveAveragePool(SeparableOperation):
    """Adaptive average pooling to ``size`` (one entry per axis)."""

    size: list[int]

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return _ADAPTIVE_AVERAGE_POOL[len(self.size)](x, self.size)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return adaptive_average_pool_transpose(s, x, len(self.size))

    def along(self, axis: int) -> LinearOperation:
        return replace(self, size=only(axis, self.size))


def leaves_sizes_free(x: Tensor) -> bool:
    """Whether an export leaves sizes of ``x`` free, such as the batch."""
    return not all(isinstance(size, int) for size in x.shape)


@primitive(linear="first")
def upsample_transpose(
    s: Tensor, x: Tensor, mode: str, align_corners: bool | None, scales: list[float] | None
) -> Tensor:
    """The transpose of upsampling, in the shape of ``x``."""
    if mode != "nearest2d" and leaves_sizes_free(x):  # of all these gradients, torch exports that of this mode alone
        return upsample_by_axis(s, x, mode, align_corners, scales)
    backward = getattr(aten, f"upsample_{mode}_backward")
    corners = [] if align_corners is None else [align_corners]
    factors = list(scales) if scales is not None else [None] * (x.dim() - 2)
    return backward(s, s.shape[2:], x.shape, *corners, *factors)


@primitive(linear="first")
def upsample_by_axis(
    s: Tensor, x: Tensor, mode: str, align_corners: bool | None, scales: list[float] | None
) -> Tensor:
    """The transpose of upsampling as products with matrices."""
    size = list(s.shape[2:]) if scales is None else None
    return by_axis_transpose(s, x, Upsample(mode, size, align_corners, scales), "same")


def changed_lobes(
    operation: SeparableOperation, change: Callable[[Any], Any]
) -> tuple[LinearOperation, Weight] | None:
    """Bicubic interpolation with changed weights: its side lobes are negative."""
    if change in (positive, negative):
        return ByAxis(operation, "positive" if change is positive else "negative"), None
    return FixedOperation.changed(operation, None, change)


@dataclass(frozen=True)
class Upsample(SeparableOperation):
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

    def along(self, axis: int) -> LinearOperation:
        size = None if self.size is None else only(axis, self.size)
        return replace(self, size=size, scales=None if self.scales is None else only(axis, self.scales, 1.0))

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        return changed_lobes(self, change) if "bicubic" in self.mode else super().changed(weight, change)


@primitive(linear="first")
def fold(x: Tensor, size: list[int], kernel: list[int], dilation: list[int], padding: list[int],
         stride: list[int]) -> Tensor:
    """Patches (batch, channels · kernel, windows) added up to an image."""
    return aten.col2im(x, size, kernel, dilation, padding, stride)


@primitive(linear="first")
def unfold(x: Tensor, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]) -> Tensor:
    """The patches of an image, (batch, channels · kernel, windows)."""
    return aten.im2col(x, kernel, dilation, padding, stride)


@dataclass(frozen=True)
class Fold(FixedOperation):
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
