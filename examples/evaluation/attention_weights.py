"""The weights of self-attention, which no module gives away where torch computes attention in one operation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fxlrp.errors import MethodError


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
