"""Products in bfloat16 between values of relevance in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import LinearOperation, Weight


@dataclass(frozen=True, eq=False)
class InBfloat16(LinearOperation):
    """A linear operation that multiplies in bfloat16 where its weights are of that type, and in float32 else.

    What it is given and what it returns have the precision of relevance. float16 reaches too few numbers: a quotient
    of relevance by a small denominator would overflow.

    Attributes:
        inner: the operation itself.
    """

    inner: LinearOperation

    @property
    def channel_axis(self) -> int:  # type: ignore[override]
        return self.inner.channel_axis

    @property
    def held(self) -> bool:  # type: ignore[override]
        return self.inner.held

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        weight = as_factor(weight, x)
        return returned(self.inner.apply(multiplied(x, weight), weight), x)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        weight = as_factor(weight, s)
        return returned(self.inner.transpose(multiplied(s, weight), weight, x), s)

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        return self.inner.broadcast_bias(bias)

    def changed(self, weight: Weight, change: Callable[[Any], Any]) -> tuple[LinearOperation, Weight] | None:
        found = self.inner.changed(weight, change)
        return None if found is None else (InBfloat16(found[0]), found[1])


@primitive
def as_factor(weight: Tensor, value: Tensor) -> Tensor:
    """Weights as they are multiplied with ``value``: in bfloat16 if they are, else in the precision of ``value``."""
    return weight if weight.dtype is torch.bfloat16 else weight.to(value.dtype)


@primitive(linear="first")
def multiplied(value: Tensor, weight: Tensor) -> Tensor:
    """A value in the precision of the weights that it is multiplied with."""
    return value.to(weight.dtype)


@primitive(linear="first")
def returned(product: Tensor, value: Tensor) -> Tensor:
    """A product in the precision of the value that was multiplied."""
    return product.to(value.dtype)
