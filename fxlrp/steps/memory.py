"""Memory: which tensors may be written to, and how much of one is worked on at a time.

A fresh tensor costs more than the arithmetic in it: memory to be mapped, zeroed and fetched. A step
may have a form that writes its result into an operand (:class:`~fxlrp.steps.declaration.InPlace`);
here is what these forms share.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling

_CACHED = 1 << 22
"""Bytes from which on an item is worked on alone, so that a second pass over it finds it in the cache."""


def plain(value: Tensor) -> bool:
    """Whether a tensor is its elements and no more: no gradient is recorded, no vmap or compiler stands behind it."""
    if is_compiling():
        return False
    recorded = value.requires_grad and torch.is_grad_enabled()
    return not recorded and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def writable(*tensors: Tensor) -> bool:
    """Whether tensors may be written to: autograd, where it is on, may have kept any of them for later."""
    return not torch.is_grad_enabled() and all(map(plain, tensors))


def takes(target: Tensor, other: Tensor) -> bool:
    """Whether the result of a step on both is of the form of ``target``, and may be written there."""
    return (
        isinstance(target, Tensor) and isinstance(other, Tensor) and writable(target, other)
        and other.dtype == target.dtype and other.shape == target.shape
    )  # fmt: skip


def takes_broadcast(target: Tensor, other: Tensor) -> bool:
    """The same where ``other`` is spread over the target, or only the target has the rows of ``torch.vmap``."""
    if not (isinstance(target, Tensor) and isinstance(other, Tensor)) or other.dtype != target.dtype:
        return False
    if not (writable(target, other) or has_rows(target)):
        return False
    surplus = target.dim() - other.dim()
    sizes = zip(other.shape, target.shape[surplus:], strict=True)
    return surplus >= 0 and all(size in (1, mine) for size, mine in sizes)


def has_rows(target: Tensor) -> bool:
    """Whether ``torch.vmap`` gave ``target`` rows, and it may be written to."""
    if is_compiling() or torch.is_grad_enabled():
        return False
    return torch._C._functorch.is_batchedtensor(target)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors item by item, if that keeps several passes over them in a processor's cache."""
    first = tensors[0]
    whole = is_compiling() or first.device.type != "cpu"
    if whole or first.dim() < 2 or first.shape[0] == 1 or first.nbytes <= _CACHED:
        yield tensors
        return
    yield from zip(*(torch.split(tensor, 1) for tensor in tensors), strict=True)


def holds_everywhere(condition: Tensor) -> bool:
    """Whether the boolean ``condition`` is true everywhere, in each row too where ``torch.vmap`` gave it rows."""
    while torch._C._functorch.is_batchedtensor(condition):
        condition = torch._C._functorch.get_unwrapped(condition)
    return bool(condition.all())
