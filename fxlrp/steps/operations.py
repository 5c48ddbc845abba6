"""Linear operations, seen the way linear rules need them.

A linear operation offers three things: *apply* to an input with given weights, its
*transpose*, and (held by the caller) its weights. Rules are written once, for all.

Shapes: ``x`` and what ``transpose`` returns are the operand's, (batch, ...); ``z`` and
``s`` are the output's. Operations without weights (pooling, mean, sum) take ``None``;
their fixed weights are never negative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.primitives import negative, positive, primitive, squared

Weight = Any
"""A tensor; ``None`` for operations that have no weights."""


class LinearOperation(ABC):
    """Base of the linear operations: maps that are linear in ``x`` once the weights are fixed."""

    channel_axis = 1
    """The axis of the operand's channels, or features."""

    held = False
    """Whether the weights are made of the operand and held constant; the transpose is then no derivative."""

    @abstractmethod
    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        """The operation at ``x`` with ``weight`` in place of its own weights, without bias."""

    @abstractmethod
    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        """The transposed operation at ``s``; ``x`` gives the shape of the operand."""

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        """``bias`` in a shape that adds to the output."""
        return bias

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        """The operation and the weights once ``change`` was made to each; ``None`` where all become zero."""
        return self, change(weight)

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        """The operation and the weights with a norm behind it in them, which scales what is along axis 1.

        Asked only of operations with weights of their own: those without have no norm in them.
        """
        raise NotImplementedError  # never asked of those without weights

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        """As :meth:`scaled_outputs`, with a norm before it."""
        raise NotImplementedError  # as above


class FixedOperation(LinearOperation):
    """An operation whose weights are its own, positive or zero, and as large for all that an output looks at."""

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        if change is negative:
            return None
        if change is positive:
            return self, None
        if change is torch.ones_like:
            return self.flat(), None
        assert change is squared, "fixed weights can be made positive, negative, squared or ones"
        return self.squared(), None

    def flat(self) -> LinearOperation:
        """The operation with ones for weights; by default they are."""
        return self

    def squared(self) -> LinearOperation:
        """The operation with its weights squared; by default they are ones."""
        return self


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

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_leading(weight, factors)

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_grouped(weight, factors, self.groups)


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

    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_grouped(weight, factors, self.groups)

    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        return self, scale_leading(weight, factors)


@dataclass(frozen=True)
class Dense(LinearOperation):
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
