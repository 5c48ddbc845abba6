"""Maps from attention weights and their gradients, as methods of an evaluation: what transformers are compared with.

Attention rollout (Abnar and Zuidema, ACL 2020), and two rules for self-attention of Chefer, Gur and Wolf: "Transformer
Interpretability Beyond Attention Visualization" (CVPR 2021) and "Generic Attention-model Explainability for
Interpreting Bi-Modal and Encoder-Decoder Transformers" (ICCV 2021). The first needs relevance of attention weights,
by rules of its own: :mod:`examples.evaluation.attention_relevance`.
In a configuration: ``kind = "python"``, ``function = "examples.evaluation.attention_maps:generic_attention"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.evaluation.attention_relevance import RelevanceOfWeights
from examples.evaluation.attention_weights import AttentionWeights
from fxlrp.errors import MethodError

Maps = Callable[[Tensor, Tensor], Tensor]
"""From inputs, (batch, channels, height, width), and classes, (batch,), to maps, (batch, height, width)."""


def rollout(model: nn.Module) -> Maps:
    """Attention rollout: the product of (A + 1) / 2 over the layers, A the mean of the heads. It knows no class."""

    def maps(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad(), AttentionWeights() as kept:
            model(inputs)
        relevance = _identity(kept.weights)
        for weights in kept.weights:
            relevance = (weights.mean(dim=1) @ relevance + relevance) / 2
        return _of_class_token(relevance, inputs)

    return maps


def generic_attention(model: nn.Module, *, log_odds: bool = False) -> Maps:
    """Chefer et al. (ICCV 2021): R ← R + mean over heads of (∇A ⊙ A)⁺ R, layer by layer, from R = 1.

    Args:
        model: a transformer for images whose first token, and no other, stands for no patch.
        log_odds: whether gradients are those of the class against the others; else of its logit, as published.
    """

    def maps(inputs: Tensor, targets: Tensor) -> Tensor:
        weights, gradients = _gradients(model, inputs, targets, log_odds)
        return _accumulated(weights, gradients, inputs)

    return maps


def transformer_attribution(model: nn.Module, *, log_odds: bool = False) -> Maps:
    """Chefer et al. (CVPR 2021): R ← R + mean over heads of (∇A ⊙ Rᴬ)⁺ R, layer by layer, from R = 1.

    Rᴬ is the relevance of the attention weights. It starts with 1 at the logit of the class.

    Args:
        model: a transformer for images whose first token, and no other, stands for no patch.
        log_odds: whether gradients are those of the class against the others; else of its logit, as published.
            Relevance starts at the logit in both cases: a start that sums to zero vanishes in their rule for a sum.
    """

    def maps(inputs: Tensor, targets: Tensor) -> Tensor:
        _, gradients = _gradients(model, inputs, targets, log_odds)
        with torch.enable_grad(), RelevanceOfWeights() as kept:
            logits = model(inputs.detach().requires_grad_())
        relevance = torch.autograd.grad(logits, kept.weights, F.one_hot(targets, logits.shape[1]).to(logits))
        return _accumulated(relevance, gradients, inputs)

    return maps


def _gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, log_odds: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The attention weights of every layer, and the gradients of the logit or the log-odds by them."""
    with torch.enable_grad(), AttentionWeights() as kept:
        logits = model(inputs.detach().requires_grad_())
        start = logits.gather(1, targets[:, None]).sum()
        if log_odds:
            others = torch.zeros_like(logits).scatter(1, targets[:, None], -torch.inf)
            start = start - (logits + others).logsumexp(dim=1).sum()
    _identity(kept.weights)
    return kept.weights, torch.autograd.grad(start, kept.weights)


def _accumulated(weights: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """R ← R + mean over heads of (gradient ⊙ weights)⁺ R from the first layer on, and the map of the first token."""
    relevance = _identity(weights)
    for each, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + (gradient * each).clamp(min=0).mean(dim=1) @ relevance
    return _of_class_token(relevance, inputs).detach()


def _identity(weights: Sequence[Tensor]) -> Tensor:
    if not weights:
        raise MethodError("the model calls scaled_dot_product_attention nowhere")
    return torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(weights[0]), -1, -1)


def _of_class_token(relevance: Tensor, inputs: Tensor) -> Tensor:
    """What the first token has of every patch, spread evenly over the pixels of the patch."""
    (height, width), patches = inputs.shape[-2:], relevance[:, 0, 1:]
    rows = round((patches.shape[1] * height / width) ** 0.5)
    grid = patches.unflatten(1, (rows, -1))
    pixels = height // grid.shape[1] * (width // grid.shape[2])
    return F.interpolate(grid[:, None], (height, width))[:, 0] / pixels
