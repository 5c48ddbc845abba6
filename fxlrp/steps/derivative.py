"""The derivative of any operation, transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.steps.declaration import primitive


@primitive(linear="first")
def vector_jacobian(
    relevance: Any, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], operands: Sequence[Tensor]
) -> list[Tensor]:
    """``relevance`` back through the derivative of ``target(*args, **kwargs)`` in each of ``operands``.

    Args:
        relevance: like the result; where that is several tensors, pairs of index and relevance.
        target: the operation.
        args: what it was called with.
        kwargs: what it was called with by name.
        operands: the tensors among them to derive by, found by identity.
    """
    position = {id(operand): i for i, operand in enumerate(operands)}

    def call(*values: Tensor) -> Any:
        def put(leaf: Any) -> Any:
            return values[position[id(leaf)]] if id(leaf) in position else leaf

        result = target(*pytree.tree_map(put, tuple(args)), **pytree.tree_map(put, dict(kwargs)))
        return [result[index] for index, _ in relevance] if isinstance(relevance, list) else result

    result, back, *_ = torch.func.vjp(call, *operands)
    cotangent = [part for _, part in relevance] if isinstance(relevance, list) else relevance.to(result.dtype)
    gradients: Sequence[Tensor] = back(cotangent)
    return list(gradients)
