"""The small tensor functions that rules are made of.

A primitive called on tensors computes; called on torch.fx proxies it becomes one node
of the graph that is being emitted. That keeps emitted code short and readable, and
lets a primitive look at shapes that are known only when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor, fx

from fxlrp.common.errors import RuleError

P = ParamSpec("P")
T = TypeVar("T")


def primitive(function: Callable[P, T]) -> Callable[P, T]:
    """Let ``function`` record itself as a node where an argument is a torch.fx proxy."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        proxy = _first_proxy(args)
        if proxy is None and kwargs:
            proxy = _first_proxy(kwargs.values())
        if proxy is None:
            return function(*args, **kwargs)
        return cast(T, proxy.tracer.create_proxy("call_function", call, args, dict(kwargs)))

    return call


Along = Callable[..., Tensor]
"""How a step that is not linear in relevance acts on a part of it: called as the step is, with the
part's relevance, and with ``whole``, the arguments of the step for all of the relevance."""


def along(step: Callable[..., object]) -> Callable[[Along], Along]:
    """Say how ``step`` is made linear at the relevance of the whole explanation; see ``fxlrp.rules.linearity``."""

    def register(part: Along) -> Along:
        vars(step)["along"] = part
        return part

    return register


def _first_proxy(values: Iterable[object]) -> fx.Proxy | None:
    for value in values:  # one loop and no call for each, since every step of a program comes through here
        if isinstance(value, fx.Proxy):
            return value
        if isinstance(value, tuple | list):
            found = _first_proxy(value)
            if found is not None:
                return found
    return None


def plain(value: Tensor) -> bool:
    """Whether a tensor is its elements and no more: no gradient is recorded, no vmap or compiler stands behind it."""
    if torch.compiler.is_compiling():
        return False
    recorded = value.requires_grad and torch.is_grad_enabled()
    return not recorded and not torch._C._functorch.is_functorch_wrapped_tensor(value)


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
def squared(weight: Tensor) -> Tensor:
    """The square, element by element."""
    return weight.square()


@primitive
def above_zero(z: Tensor) -> Tensor:
    """Ones where ``z`` is positive."""
    return (z > 0).to(z.dtype)


@primitive
def below_zero(z: Tensor) -> Tensor:
    """Ones where ``z`` is negative."""
    return (z < 0).to(z.dtype)


@primitive
def zero(z: Tensor) -> Tensor:
    """Ones where ``z`` is exactly zero."""
    return (z == 0).to(z.dtype)


@primitive
def along_channels(values: float | Sequence[float], x: Tensor, axis: int) -> float | Tensor:
    """One number, or one for each channel of ``x`` in a shape that broadcasts to it."""
    if isinstance(values, int | float):
        return values
    if len(values) != x.shape[axis]:
        raise RuleError(f"there are {len(values)} bounds for an input of {x.shape[axis]} channels: give one a channel")
    shape = [1] * x.dim()
    shape[axis] = len(values)
    return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(shape)


def smallest_denominator(dtype: torch.dtype) -> float:
    """Below this a denominator counts as vanished: dividing by it could overflow."""
    info = torch.finfo(dtype)
    return float(info.tiny / info.eps)


@primitive
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


@primitive
def where_vanished(relevance: Tensor, z: Tensor) -> Tensor:
    """The part of ``relevance`` whose denominator ``z`` vanishes, zero elsewhere."""
    return relevance.masked_fill(z.abs() > smallest_denominator(z.dtype), 0)


@primitive
def without_padding(x: Tensor, support: Tensor) -> Tensor:
    """``x`` with zeros where it carries no signal, whatever stands there (−∞ before a max pool)."""
    return x.masked_fill(support == 0, 0)


@primitive
def fit(relevance: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: sum ``relevance`` down to ``shape``, that of an operand."""
    return relevance.sum_to_size(shape)


@primitive
def channel_sum(relevance: Tensor) -> Tensor:
    """The sum over channels: (batch, channels, ...) to (batch, ...)."""
    return relevance.sum(dim=1)


@primitive
def full(value: object, output: Tensor) -> object:
    """A tensor in the precision of relevance, that of ``output`` but at least float32; all else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(output.dtype, torch.float32))
    return value
