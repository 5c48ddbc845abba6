"""Maps from attention weights and their gradients, as methods of an evaluation: what transformers are compared with.

Attention rollout (Abnar and Zuidema, ACL 2020), and the rule for self-attention of Chefer, Gur and Wolf, "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers" (ICCV 2021).
In a configuration: ``kind = "python"``, ``function = "examples.evaluation.attention_maps:generic_attention"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxlrp.errors import MethodError

Maps = Callable[[Tensor, Tensor], Tensor]
"""From inputs, (batch, channels, height, width), and classes, (batch,), to maps, (batch, height, width)."""


class AttentionWeights(TorchFunctionMode):
    """While it is entered, every self-attention keeps its weights, (batch, heads, tokens, tokens), in ``weights``."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if attn_mask is not None or is_causal or enable_gqa or query.shape != key.shape:
            raise MethodError("an attention with a mask, groups or other keys is no plain self-attention")
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        weights = (query @ key.mT * factor).softmax(dim=-1)
        self.weights.append(weights)
        return weights @ value


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
        with torch.enable_grad(), AttentionWeights() as kept:
            logits = model(inputs.detach().requires_grad_())
            start = logits.gather(1, targets[:, None]).sum()
            if log_odds:
                others = torch.zeros_like(logits).scatter(1, targets[:, None], -torch.inf)
                start = start - (logits + others).logsumexp(dim=1).sum()
        relevance = _identity(kept.weights)
        gradients = torch.autograd.grad(start, kept.weights)
        for weights, gradient in zip(kept.weights, gradients, strict=True):
            relevance = relevance + (gradient * weights).clamp(min=0).mean(dim=1) @ relevance
        return _of_class_token(relevance, inputs).detach()

    return maps


def _identity(weights: list[Tensor]) -> Tensor:
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
