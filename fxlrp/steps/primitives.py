"""The small tensor functions that rules are made of.

A primitive called on tensors computes; called on torch.fx proxies it becomes one node
of the graph that is being emitted. That keeps emitted code short and readable, and
lets a primitive look at shapes that are known only when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.steps.declaration import InPlace, along, primitive
from fxlrp.steps.memory import blocks, has_rows, plain, takes

__all__ = [
    "above_zero", "along", "along_channels", "channels_last", "divide", "divide_into", "favoured_denominator", "fit",
    "full", "magnitude", "negative", "plain", "positive", "primitive", "smallest_denominator", "squared", "stabilize",
    "where_vanished", "with_sign", "without_padding", "zero",
]  # fmt: skip


def channels_last(x: Tensor) -> bool:
    """Whether a tensor is laid out in channels-last, and so that this can be told from the usual layout."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@primitive
def positive(weight: Tensor) -> Tensor:
    """The positive part, w⁺ or x⁺."""
    return weight.clamp(min=0)


@primitive
def negative(weight: Tensor) -> Tensor:
    """The negative part, w⁻ or x⁻ (not above zero)."""
    return weight.clamp(max=0)


@along(positive)
def positive_along(relevance: Tensor, *, whole: tuple[Tensor]) -> Tensor:
    """Where the whole is positive, whatever its part is."""
    return relevance * (whole[0] > 0)


@along(negative)
def negative_along(relevance: Tensor, *, whole: tuple[Tensor]) -> Tensor:
    """Where the whole is negative, whatever its part is."""
    return relevance * (whole[0] < 0)


@primitive
def magnitude(value: Tensor) -> Tensor:
    """The absolute value, element by element."""
    return value.abs()


@primitive
def squared(weight: Tensor) -> Tensor:
    """The square, element by element."""
    return weight.square()


@primitive
def above_zero(z: Tensor) -> Tensor:
    """Ones where ``z`` is positive."""
    return (z > 0).to(z.dtype)


@primitive
def zero(z: Tensor) -> Tensor:
    """Ones where ``z`` is exactly zero."""
    return (z == 0).to(z.dtype)


@primitive(linear="first", fresh=True)
def with_sign(value: Tensor, z: Tensor, factor: float = 1.0) -> Tensor:
    """``value`` times ``factor`` and the sign of ``z``."""
    return value * z.sign().mul_(factor)


@primitive(reads=True)
def favoured_denominator_into(total: Tensor, z: Tensor, factor: float, at_zero: float) -> Tensor:
    """:func:`favoured_denominator`, into ``total``."""
    if not takes(total, z):
        return favoured_denominator(z, total, factor, at_zero)
    return total.add_(z.abs(), alpha=factor).masked_fill_(z == 0, at_zero)


@primitive(fresh=True, writes_into=InPlace(favoured_denominator_into, orders=((1, 0),)))
def favoured_denominator(z: Tensor, total: Tensor, factor: float, at_zero: float) -> Tensor:
    """What the γ rule divides by: ``factor |z| + total``, and ``at_zero`` where ``z`` is exactly zero."""
    return torch.add(total, z.abs(), alpha=factor).masked_fill(z == 0, at_zero)


@primitive
def along_channels(values: float | Sequence[float], x: Tensor, axis: int) -> float | Tensor:
    """One number, or one for each channel of ``x`` in a shape that broadcasts to it."""
    if isinstance(values, int | float):
        return values
    if len(values) != x.shape[axis]:
        raise RuleError(f"there are {len(values)} bounds for an input of {x.shape[axis]} channels: give one each")
    shape = [1] * x.dim()
    shape[axis] = len(values)
    return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(shape)


def smallest_denominator(dtype: torch.dtype) -> float:
    """Below this a denominator counts as vanished: dividing by it could overflow."""
    info = torch.finfo(dtype)
    return float(info.tiny / info.eps)


@primitive(reads=True)
def divide_into(
    relevance: Tensor, z: Tensor, signed: bool = True, epsilon: float = 0.0, *, spare: bool = False
) -> Tensor:
    """:func:`divide`, into ``z``.

    ``spare``: nobody reads ``relevance`` again, so that it takes the quotient where it has rows and ``z`` has none.
    """
    if not takes(z, relevance):
        if spare and has_rows(relevance) and plain(z) and z.shape == relevance.shape and z.dtype == relevance.dtype:
            return relevance.div_(denominator_into(z, signed, epsilon))
        return divide(relevance, z, signed, epsilon)
    for r, d in blocks(relevance, z):
        torch.div(r, denominator_into(d, signed, epsilon), out=d)
    return z


def denominator_into(z: Tensor, signed: bool, epsilon: float) -> Tensor:
    """What :func:`divide` divides by, into ``z``."""
    if epsilon and signed:  # a number, not a boolean, per sign: that way all of it is fast
        return z.add_(torch.lt(z, 0, out=torch.empty_like(z)).mul_(-2 * epsilon).add_(epsilon))
    if epsilon:
        return z.add_(epsilon)
    smallest = smallest_denominator(z.dtype)
    return z.masked_fill_(z.abs() <= smallest, float("inf")) if signed else torch.threshold_(z, smallest, float("inf"))


@primitive(
    linear="first", fresh=True, writes_into=InPlace(divide_into, writes=(1,), spare=0)
)
def divide(relevance: Tensor, z: Tensor, signed: bool = True, epsilon: float = 0.0) -> Tensor:
    """``relevance / z``.

    Where ``z`` vanishes it is exactly zero, or with an ``epsilon`` ``z`` is stabilised first.
    ``signed``: whether ``z`` may be negative.
    """
    if epsilon:
        return relevance / stabilize(z, epsilon)
    stands = (z.abs() if signed else z) > smallest_denominator(z.dtype)
    # R / inf is 0, and so is its derivative: no NaN on the way back either.
    return relevance / torch.where(stands, z, float("inf"))


@primitive
def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """``z`` moved away from zero by ``epsilon`` in the direction of its sign, sign(0) = +1."""
    return torch.where(z < 0, z - epsilon, z + epsilon)


@primitive(linear="first")
def where_vanished(relevance: Tensor, z: Tensor) -> Tensor:
    """The part of ``relevance`` whose denominator ``z`` vanishes, zero elsewhere."""
    return relevance.masked_fill(z.abs() > smallest_denominator(z.dtype), 0)


@primitive(linear="first")
def without_padding(x: Tensor, support: Tensor) -> Tensor:
    """``x`` with zeros where it carries no signal, whatever stands there (−∞ before a max pool)."""
    return x.masked_fill(support == 0, 0)


@primitive(linear="first")
def fit(relevance: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: sum ``relevance`` down to ``shape``, that of an operand."""
    return relevance.sum_to_size(shape)


@primitive(linear="first")
def full(value: object, output: Tensor) -> object:
    """A tensor in the precision of relevance, that of ``output`` but at least float32; all else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(output.dtype, torch.float32))
    return value
