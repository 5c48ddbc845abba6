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

from fxlrp.rules.items import Items, rescale_to, spread_items, sum_items
from fxlrp.rules.join import ratio, ratio_split
from fxlrp.rules.primitives import divide, plain, primitive, smallest_denominator

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


def _takes_rows(target: Tensor, other: Tensor) -> bool:
    """The same for steps that ``torch.vmap`` does in place too, if it is the target that has rows."""
    if _takes(target, other):
        return True
    tensors = isinstance(target, Tensor) and isinstance(other, Tensor)
    if not tensors or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    rows = torch._C._functorch.is_batchedtensor(target)
    return rows and other.dtype == target.dtype and other.shape == target.shape


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors item by item, if that keeps several passes over them in a processor's cache."""
    first = tensors[0]
    whole = torch.compiler.is_compiling() or first.device.type != "cpu"
    if whole or first.dim() < 2 or first.shape[0] == 1 or first.nbytes <= _CACHED:
        yield tensors
        return
    yield from zip(*(torch.split(tensor, 1) for tensor in tensors), strict=True)


@primitive
def divide_into(relevance: Tensor, z: Tensor, signed: bool = True) -> Tensor:
    """:func:`~fxlrp.rules.primitives.divide`, into ``z``."""
    if not _takes(z, relevance):
        return divide(relevance, z, signed)
    smallest = smallest_denominator(z.dtype)
    for r, d in _blocks(relevance, z):
        if signed:
            d.masked_fill_(d.abs() <= smallest, float("inf"))
        else:
            torch.threshold_(d, smallest, float("inf"))
        torch.div(r, d, out=d)
    return z


@primitive
def multiply_into(target: Tensor, factor: Tensor) -> Tensor:
    """``target · factor``, into ``target``."""
    return target.mul_(factor) if _takes_rows(target, factor) else target * factor


@primitive
def add_into(target: Tensor, other: Tensor) -> Tensor:
    """``target + other``, into ``target``."""
    return target.add_(other) if _takes_rows(target, other) else target + other


@primitive
def subtract_into(target: Tensor, other: Tensor) -> Tensor:
    """``target − other``, into ``target``."""
    return target.sub_(other) if _takes_rows(target, other) else target - other


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
        if not _takes_rows(relevance, skip):
            return ratio_split(relevance, skip, residual)
        to_skip = relevance * ratio(skip, residual)
        return to_skip, relevance.sub_(to_skip)
    for r, s, m in _blocks(relevance, skip, residual):
        total = s.abs().add_(m.abs_())
        to_skip = torch.abs(s, out=m).div_(total).nan_to_num_(nan=0.5).mul_(r)  # 0/0 is a half
        r.sub_(to_skip)
    return residual, relevance


@primitive
def rescale_into(
    share: Tensor, received: Tensor, support: Tensor | None = None, items: Items | None = None
) -> Tensor:
    """:func:`~fxlrp.rules.items.rescale_to`, into ``share``; on a processor without work for items that need none."""
    if share.device.type != "cpu" or torch.compiler.is_compiling() or not _writable(share, received):
        return rescale_to(share, received, support, items)
    total = sum_items(share, items)
    smallest = smallest_denominator(share.dtype)
    if not all(there > smallest * abs(wanted) for there, wanted in zip(total.tolist(), received.tolist(), strict=True)):
        return rescale_to(share, received, support, items)
    return share.mul_(spread_items(received / total, share, items))
