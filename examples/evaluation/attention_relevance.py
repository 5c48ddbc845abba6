"""Relevance of attention weights by the rules of Chefer, Gur and Wolf (CVPR 2021), as their code has them.

Functions of torch hand back relevance in place of gradients. ``torch.autograd.grad`` then gives the relevance of
attention weights. The rules are those of github.com/hila-chefer/Transformer-Explainability at its default, α = 1:

- A linear layer hands on by positive contributions, without its bias (:func:`of_linear`). This is fxlrp's
  ``ZPlus(vanishing="absorb")``.
- A product of two signals gives half to each (:func:`of_product`).
- A sum of two signals gives each its part of the sum, and scales each part by one factor (:func:`of_sum`). fxlrp's
  splits have no such factors.
- Softmax passes relevance on as it is (:func:`passed`). fxlrp's rule for a softmax is another one.
- Normalisations, activations and scales pass it on as well.

Their models have no layer scale. It is treated as a scale here, as their code treats the scale of a batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from examples.evaluation.attention_weights import AttentionWeights
from fxlrp.errors import MethodError

STABILISER = 1e-9
Rule = Callable[..., tuple[Tensor, ...]]
"""From relevance, the output of a function and its operands to relevance of the first operands."""


def divided(relevance: Tensor, by: Tensor) -> Tensor:
    """Their division: nothing where ``by`` is zero, else by a little more than it is."""
    shifted = by + STABILISER
    return torch.where(by == 0, 0.0, relevance / torch.where(shifted == 0, STABILISER, shifted))


def of_linear(relevance: Tensor, output: Tensor, signal: Tensor, weight: Tensor, bias: Any = None) -> tuple[Tensor]:
    """By positive contributions: x⁺ with w⁺, and x⁻ with w⁻."""
    positive, negative, up, down = signal.clamp(min=0), signal.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    share = divided(relevance, F.linear(positive, up) + F.linear(negative, down))
    return (positive * (share @ up) + negative * (share @ down),)


def of_product(relevance: Tensor, output: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Half to each, by their contributions."""
    share = divided(relevance, output)
    return first * (share @ second.mT) / 2, second * (first.mT @ share) / 2


def of_sum(relevance: Tensor, output: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """To each its part of the sum. One factor for each side then makes both sides keep the sum of the relevance."""
    share = divided(relevance, output)
    parts = first * share, second * share
    sums = [part.flatten(1).sum(dim=1) for part in parts]
    whole, magnitude = relevance.flatten(1).sum(dim=1), sums[0].abs() + sums[1].abs()
    factors = [divided(divided(each.abs(), magnitude) * whole, each) for each in sums]
    return parts[0] * factors[0][:, None, None], parts[1] * factors[1][:, None, None]


def passed(relevance: Tensor, output: Tensor, signal: Tensor, *others: Any) -> tuple[Tensor]:
    """As it is."""
    return (relevance,)


RULES: dict[Any, Rule] = {
    F.linear: of_linear, torch.Tensor.matmul: of_product, torch.Tensor.add: of_sum,
    torch.Tensor.mul: passed, torch.Tensor.softmax: passed, F.layer_norm: passed, F.gelu: passed,
}  # fmt: skip
ROUTING = (
    torch.Tensor.reshape, torch.Tensor.flatten, torch.Tensor.transpose, torch.Tensor.permute, torch.Tensor.unbind,
    torch.Tensor.expand, torch.Tensor.__getitem__, torch.Tensor.mT.__get__, torch.cat, F.dropout,
)  # fmt: skip
"""Functions that move values: their gradient moves relevance back. Dropout does nothing in eval mode."""


class RelevanceOfWeights(AttentionWeights):
    """Attention weights that are kept while it is entered have relevance in place of gradients.

    The relevance that enters at the logits is the ``grad_outputs`` of :func:`torch.autograd.grad`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            with self:  # so that the products in it have rules too
                return self._attend(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func in RULES:
            return _ByRule.apply(RULES[func], output, *args)
        if self.weights and func not in ROUTING and isinstance(output, Tensor) and output.requires_grad:
            raise MethodError(f"there is no rule for {resolve_name(func)}")
        return output


class _ByRule(torch.autograd.Function):
    """The output of a function, which hands relevance to its operands by a rule."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, output: Tensor, *operands: Any) -> Tensor:
        ctx.rule, ctx.others = rule, [None if isinstance(each, Tensor) else each for each in operands]
        ctx.save_for_backward(output, *(each for each in operands if isinstance(each, Tensor)))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        output, *tensors = ctx.saved_tensors
        rest = iter(tensors)
        operands = [next(rest) if each is None else each for each in ctx.others]
        shares = ctx.rule(relevance, output, *operands)
        return None, None, *shares, *[None] * (len(operands) - len(shares))
