"""Which operations torch takes apart while it exports a model: those that the vocabulary does not know."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.export import default_decompositions

from fxlrp.vocabulary import VOCABULARY

_WHOLE = frozenset({
    "copy", "squeeze", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_full",
})  # fmt: skip
"""Operations that say more as they are: most take of a tensor its shape alone."""


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own decompositions of the operations that have no rule and no signal-free meaning of their own."""
    return {overload: way for overload, way in _ways().items() if VOCABULARY.overload(overload) is None}


def can_be_decomposed(name: str) -> bool:
    """Whether torch takes an operation of this name apart in one of its forms."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    return packet is not None and any(getattr(packet, form) in _ways() for form in packet.overloads())


def is_composite(overload: Any) -> bool:
    """Whether torch makes this overload out of others."""
    try:
        return bool(overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))
    except RuntimeError:  # an overload for numbers, which the dispatcher does not know
        return False


@cache
def _ways() -> dict[Any, Callable[..., Any]]:
    table: Any = default_decompositions()
    return {
        overload: table[overload] for overload in table
        if getattr(overload, "namespace", "") == "aten" and overload.overloadpacket.__name__ not in _WHOLE
    }  # fmt: skip
