"""Attention: torch's own, as a function and as a module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxlrp.steps.attention import Attention, WeightedSum, attention_weights
from fxlrp.vocabulary.channel_moves import last
from fxlrp.vocabulary.operation import Arguments, Kind, Operation, Unsupported

aten = torch.ops.aten


def lower_attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Any:
    if isinstance(dropout_p, int | float) and dropout_p > 0:
        raise Unsupported("attention with dropout that stays active in eval mode", final=True)
    return aten.scaled_dot_product_attention.default(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attention_of(a: Arguments) -> Attention:
    """The operands of a call of ``scaled_dot_product_attention``."""
    return Attention(a["query"], a["key"], a["value"], a["attn_mask"], a["is_causal"], a["scale"])


def bind_values(a: Arguments, operand: str) -> tuple[Any, Any, Any]:
    at = attention_of(a)
    return WeightedSum(), attention_weights(at.query, at.key, at.mask, at.causal, at.scale), None


def lower_multihead(module: nn.MultiheadAttention, query: Any, key: Any, value: Any, key_padding_mask: Any = None,
                    need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True,
                    is_causal: bool = False) -> tuple[Any, Any]:
    """``nn.MultiheadAttention`` with the batch in front, in the steps that it documents."""
    if module.bias_k is not None or module.add_zero_attn:
        raise Unsupported("nn.MultiheadAttention with add_bias_kv or add_zero_attn")
    if attn_mask is not None or key_padding_mask is not None:
        raise Unsupported("nn.MultiheadAttention with a mask: whether it is boolean or additive shows in export")
    itself = query is key and key is value
    if not module.batch_first:
        query = aten.transpose.int(query, 0, 1)
        key, value = (query, query) if itself else (aten.transpose.int(x, 0, 1) for x in (key, value))
    heads = [_heads(x, module.num_heads) for x in _projected(module, query, key, value, itself=itself)]
    mixed = aten.scaled_dot_product_attention.default(*heads)
    merged = aten.flatten.using_ints(aten.transpose.int(mixed, 1, 2), 2, 3)
    out = aten.linear.default(merged, module.out_proj.weight, module.out_proj.bias)
    if not module.batch_first:
        out = aten.transpose.int(out, 0, 1)
    if not need_weights:
        return out, None
    weights = attention_weights(heads[0], heads[1], None, False, None)  # gone again where nobody reads it
    return out, weights.mean(dim=1) if average_attn_weights else weights


def _projected(module: Any, query: Any, key: Any, value: Any, *, itself: bool) -> list[Any]:
    size = module.embed_dim
    bias = module.in_proj_bias
    if module.in_proj_weight is not None and itself:
        thirds = aten.chunk.default(aten.linear.default(query, module.in_proj_weight, bias), 3, -1)
        return [thirds[i] for i in range(3)]
    parts = [slice(i * size, (i + 1) * size) for i in range(3)]
    if module.in_proj_weight is not None:
        weights = [module.in_proj_weight[part] for part in parts]
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None if bias is None else bias[part] for part in parts]
    return [aten.linear.default(*of) for of in zip((query, key, value), weights, biases, strict=True)]


def _heads(x: Any, heads: int) -> Any:
    return aten.transpose.int(aten.unflatten.int(x, -1, [heads, -1]), 1, 2)


OPERATIONS = [
    Operation(
        aten.scaled_dot_product_attention.default, Kind.PRODUCT, operands=("query", "key", "value"),
        functions=(F.scaled_dot_product_attention,), lower=lower_attention, bind=bind_values, values="value",
        channels=last,
    ),
]

MODULES = {nn.MultiheadAttention: lower_multihead}
