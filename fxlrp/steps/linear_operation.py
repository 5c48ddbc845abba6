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
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.primitives import magnitude, negative, positive, squared

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


class LayerOperation(LinearOperation):
    """An operation with weights of its own, into which a batch norm next to it can be folded."""

    @abstractmethod
    def scaled_outputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        """The operation and the weights with a norm behind it in them, which scales what is along axis 1."""

    @abstractmethod
    def scaled_inputs(self, weight: Weight, factors: Tensor, x: Tensor) -> tuple[LinearOperation, Weight]:
        """As :meth:`scaled_outputs`, with a norm before it."""


class FixedOperation(LinearOperation):
    """An operation whose weights are its own, positive or zero, and as large for all that an output looks at."""

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        if change is negative:
            return None
        if change is positive:
            return self, None
        if change is magnitude:
            return self.magnitude(), None
        if change is torch.ones_like:
            return self.flat(), None
        assert change is squared, "fixed weights can be made positive, negative, absolute, squared or ones"
        return self.squared(), None

    def flat(self) -> LinearOperation:
        """The operation with ones for weights; by default they are."""
        return self

    def magnitude(self) -> LinearOperation:
        """The operation with the absolute values of its weights; by default none is negative."""
        return self

    def squared(self) -> LinearOperation:
        """The operation with its weights squared; by default they are ones."""
        return self
