"""Rules that are no shares but derivatives: gradients, guided backpropagation, deconvolution.

They do not conserve; the ledger tells the difference under ``gradient``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.rules.rule import GRADIENT, Rule, Shares
from fxlrp.steps.primitives import above_zero, positive, primitive


class Gradient(Rule):
    """The derivative, ``R_i = Σ_j R_j ∂z_j/∂x_i``, of any operation (Simonyan et al., ICLR Workshop 2014)."""

    def __call__(self, relevance: Tensor, back: Callable[[Tensor], list[Tensor]]) -> Shares:
        """Share out ``relevance``; ``back`` is the transposed derivative, one tensor an operand."""
        return Shares(list(back(relevance)), rest=GRADIENT)


class ReLUGuidedBackprop(Rule):
    """Guided backpropagation at a ReLU: what is positive, where the input was (Springenberg et al., ICLR 2015)."""

    def __call__(self, relevance: Tensor, x: Tensor) -> Shares:
        """Share ``relevance`` out over ``x``."""
        return Shares([positive(relevance) * above_zero(x)], rest=GRADIENT)


class ReLUDeconvNet(Rule):
    """DeconvNet at a ReLU: what is positive (Zeiler and Fergus, ECCV 2014)."""

    def __call__(self, relevance: Tensor, x: Tensor) -> Shares:
        """Share ``relevance`` out over ``x``."""
        return Shares([positive(relevance)], rest=GRADIENT)


@primitive
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
    places = {id(operand): i for i, operand in enumerate(operands)}

    def call(*values: Tensor) -> Any:
        def put(leaf: Any) -> Any:
            return values[places[id(leaf)]] if id(leaf) in places else leaf

        result = target(*pytree.tree_map(put, tuple(args)), **pytree.tree_map(put, dict(kwargs)))
        return [result[index] for index, _ in relevance] if isinstance(relevance, list) else result

    result, back, *_ = torch.func.vjp(call, *operands)
    cotangent = [part for _, part in relevance] if isinstance(relevance, list) else relevance.to(result.dtype)
    found: Sequence[Tensor] = back(cotangent)
    return list(found)
