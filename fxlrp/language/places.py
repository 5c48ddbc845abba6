"""The start of a token of an answer: a row of the logits, a token of the vocabulary, and perhaps a rival."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.rules.starts import Start, log_odds_against


def codes(rows: Tensor, tokens: Tensor, rivals: Tensor | None, vocabulary: int) -> Tensor:
    """One number for each explanation, (1, explanations): what a target can carry.

    Args:
        rows: (explanations,), which row of the logits.
        tokens: (explanations,), which token.
        rivals: (explanations,), the token to explain it against; ``None``: none.
        vocabulary: how many tokens there are.
    """
    against = torch.zeros_like(tokens) if rivals is None else rivals + 1
    return ((rows * vocabulary + tokens) * (vocabulary + 1) + against).unsqueeze(0)


class AtPlace:
    """A start of classes at one row of the logits, (batch, rows, vocabulary); targets are :func:`codes`.

    Args:
        start: the start of a row, ``(logits, target) -> relevance`` of (batch, vocabulary).
        name: what it is called.
    """

    def __init__(self, start: Start, name: str) -> None:
        self.start = start
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name} of a token"

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        vocabulary = output.shape[-1]
        rival, place = target % (vocabulary + 1) - 1, target // (vocabulary + 1)
        row, token = place // vocabulary, place % vocabulary
        at_row = torch.nn.functional.one_hot(row, output.shape[1]).to(output.dtype).unsqueeze(-1)
        logits = torch.gather(output, 1, row.reshape(-1, 1, 1).expand(-1, 1, vocabulary)).squeeze(1)
        contrast = log_odds_against(logits, token, rival.clamp(min=0).unsqueeze(1))
        entered = torch.where((rival < 0).unsqueeze(1), self.start(logits, token), contrast)
        return at_row * entered.unsqueeze(1)
