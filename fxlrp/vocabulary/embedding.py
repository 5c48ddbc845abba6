"""Embedding lookups: where the signal of an integer input begins."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.vocabulary.channel_moves import last
from fxlrp.vocabulary.operation import Kind, Operation, Unsupported

aten = torch.ops.aten


def lower_embedding(input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None,
                    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:
    if max_norm is not None:
        raise Unsupported("an embedding with max_norm changes its weights in forward", final=True)
    return aten.embedding.default(weight, input)


OPERATIONS = [
    Operation(
        aten.embedding.default, Kind.INPUT, operands=("indices",), functions=(F.embedding,), lower=lower_embedding,
        channels=last,
    ),
]
