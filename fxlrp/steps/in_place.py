"""Steps of rules that write their result into an operand which nobody reads afterwards.

A fresh tensor costs more than the arithmetic in it: memory to be mapped, zeroed and fetched.
:mod:`fxlrp.passes.optimize.in_place` puts these in the place of steps whose operand is at its end.
Each returns what the step itself would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.join import ratio, ratio_split, signed_split
from fxlrp.steps.batch_axis import Items, rescale_to, spread_items, sum_items
from fxlrp.steps.primitives import divide, plain, primitive, smallest_denominator

_CACHED = 1 << 22
"""Bytes of an item from which on a processor keeps its second pass over it in cache; smaller ones go together."""


def _writable(*tensors: Tensor) -> bool:
    """Whether tensors may be written to: autograd, where it is on, may have kept any of them for later."""
    return not torch.is_grad_enabled() and all(map(plain, tensors))


def _takes(target: Tensor, other: Tensor) -> bool:
    """Whether the result of a step on both is of the form of ``target``, and may be written there."""
    return (
        isinstance(target, Tensor) and isinstance(other, Tensor) and _writable(target, other)
        and other.dtype == target.dtype and other.shape == target.shape
    )  # fmt: skip


def _takes_broadcast(target: Tensor, other: Tensor) -> bool:
    """The same where ``other`` is spread over the target, or only the target has the rows of ``torch.vmap``."""
    if not (isinstance(target, Tensor) and isinstance(other, Tensor)) or other.dtype != target.dtype:
        return False
    if not (_writable(target, other) or _has_rows(target)):
        return False
    surplus = target.dim() - other.dim()
    sizes = zip(other.shape, target.shape[surplus:], strict=True)
    return surplus >= 0 and all(size in (1, mine) for size, mine in sizes)


def _has_rows(target: Tensor) -> bool:
    """Whether ``torch.vmap`` gave ``target`` rows, and it may be written to."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return torch._C._functorch.is_batchedtensor(target)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors item by item, if that keeps several passes over them in a processor's cache."""
    first = tensors[0]
    whole = torch.compiler.is_compiling() or first.device.type != "cpu"
    if whole or first.dim() < 2 or first.shape[0] == 1 or first.nbytes <= _CACHED:
        yield tensors
        return
    yield from zip(*(torch.split(tensor, 1) for tensor in tensors), strict=True)


@primitive
def divide_into(
    relevance: Tensor, z: Tensor, signed: bool = True, epsilon: float = 0.0, *, spare: bool = False
) -> Tensor:
    """:func:`~fxlrp.steps.primitives.divide`, into ``z``.

    ``spare``: nobody reads ``relevance`` again, so that it takes the quotient where it has rows and ``z`` has none.
    """
    if not _takes(z, relevance):
        if spare and _has_rows(relevance) and plain(z) and z.shape == relevance.shape and z.dtype == relevance.dtype:
            return relevance.div_(_denominator(z, signed, epsilon))
        return divide(relevance, z, signed, epsilon)
    for r, d in _blocks(relevance, z):
        torch.div(r, _denominator(d, signed, epsilon), out=d)
    return z


def _denominator(z: Tensor, signed: bool, epsilon: float) -> Tensor:
    """What :func:`~fxlrp.steps.primitives.divide` divides by, into ``z``."""
    if epsilon and signed:  # a number, not a truth, for each sign: that way all of it is fast
        return z.add_(torch.lt(z, 0, out=torch.empty_like(z)).mul_(-2 * epsilon).add_(epsilon))
    if epsilon:
        return z.add_(epsilon)
    smallest = smallest_denominator(z.dtype)
    return z.masked_fill_(z.abs() <= smallest, float("inf")) if signed else torch.threshold_(z, smallest, float("inf"))


@primitive
def multiply_into(target: Tensor, factor: Tensor) -> Tensor:
    """``target · factor``, into ``target``."""
    return target.mul_(factor) if _takes_broadcast(target, factor) else target * factor


@primitive
def add_into(target: Tensor, other: Tensor) -> Tensor:
    """``target + other``, into ``target``."""
    return target.add_(other) if _takes_broadcast(target, other) else target + other


@primitive
def subtract_into(target: Tensor, other: Tensor) -> Tensor:
    """``target − other``, into ``target``."""
    return target.sub_(other) if _takes_broadcast(target, other) else target - other


def activation_into(name: str) -> Callable[..., Tensor]:
    """The activation of ATen of this name, into its operand; autograd needs that, and gets a new tensor."""
    new, into = getattr(torch.ops.aten, name).default, getattr(torch.ops.aten, f"{name}_").default

    @primitive
    def activate(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        activated: Tensor = (into if _writable(x) else new)(x, *args, **kwargs)
        return activated

    activate.__name__ = activate.__qualname__ = f"{name}_into"
    return activate


@primitive
def ratio_split_into(
    relevance: Tensor, skip: Tensor, residual: Tensor,
    skip_support: Tensor | None = None, residual_support: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`~fxlrp.rules.join.ratio_split`, into ``relevance`` and ``residual``."""
    if skip_support is not None or residual_support is not None:
        return ratio_split(relevance, skip, residual, skip_support, residual_support)
    if not (_takes(relevance, skip) and _takes(residual, skip)):
        if not (_has_rows(relevance) and relevance.shape == skip.shape == residual.shape):
            return ratio_split(relevance, skip, residual)
        to_skip = relevance * ratio(skip, residual)
        return to_skip, relevance.sub_(to_skip)
    for r, s, m in _blocks(relevance, skip, residual):
        total = s.abs().add_(m.abs_())
        to_skip = torch.abs(s, out=m).div_(total).nan_to_num_(nan=0.5).mul_(r)  # 0/0 is a half
        r.sub_(to_skip)
    return residual, relevance


@primitive
def signed_split_into(relevance: Tensor, skip: Tensor, residual: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """:func:`~fxlrp.rules.join.signed_split`, into ``relevance``."""
    if not (_takes(relevance, skip) and _takes(relevance, residual)):
        return signed_split(relevance, skip, residual, epsilon)
    to_skip = torch.empty_like(skip)
    for r, s, m, share in _blocks(relevance, skip, residual, to_skip):
        torch.mul(r.div_(_denominator(torch.add(s, m, out=share), True, epsilon)), s, out=share)
        r.mul_(m)
    return to_skip, relevance


def _holds_everywhere(truth: Tensor) -> bool:
    """Whether ``truth`` is true, for each of its rows too where ``torch.vmap`` gave it some."""
    while torch._C._functorch.is_batchedtensor(truth):
        truth = torch._C._functorch.get_unwrapped(truth)
    return bool(truth.all())


@primitive
def rescale_into(
    share: Tensor, received: Tensor, support: Tensor | None = None, items: Items | None = None
) -> Tensor:
    """:func:`~fxlrp.steps.batch_axis.rescale_to`, into ``share``.

    On a processor without work for items that need none.
    """
    if share.device.type != "cpu" or not (_has_rows(share) or _writable(share, received)):
        return rescale_to(share, received, support, items)
    total = sum_items(share, items)
    nothing = received == 0  # then there is nothing in the share either, and its sum is no divisor
    if not _holds_everywhere(nothing | (total > smallest_denominator(share.dtype) * received.abs())):
        return rescale_to(share, received, support, items)
    return share.mul_(spread_items(received / total.masked_fill(nothing, 1), share, items))
