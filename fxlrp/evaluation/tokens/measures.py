"""What is measured of a text: whether the tokens that relevance names are those that the model misses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.evaluation.agreement import rank_correlation
from fxlrp.evaluation.tokens.subject import Passage, TokenModel

Scores = dict[str, Tensor]
"""By name, (batch,). The first is what is followed."""

Score = Callable[[Tensor], Scores]
"""From token numbers, (batch, tokens), that stand in a passage to its scores."""


def log_odds(logits: Tensor, target: int) -> Tensor:
    """Of a class against all others: (batch,) from (batch, classes)."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.logsumexp(dim=1)


def scores(output: Tensor, target: int | None) -> Scores:
    """``"log_odds"`` and ``"logit"`` of a class; of a model with one output, ``target=None``, ``"output"``."""
    if target is None:
        return {"output": output}
    return {"log_odds": log_odds(output, target), "logit": output[:, target]}


def scored(model: TokenModel, passage: Passage, target: int | None, batch_size: int) -> Score:
    """The scores of a passage with other tokens; the model sees ``batch_size`` of them at a time."""

    def score(ids: Tensor) -> Scores:
        parts = [scores(model(passage.with_ids(some)), target) for some in torch.split(ids, batch_size)]
        return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}

    return score


def falls(score: Score, passage: Passage, blank: int) -> Tensor:
    """By how much what is followed falls when each measured token is replaced by a blank: (measured,)."""
    places = _places(passage)
    replaced = passage.ids.repeat(len(places) + 1, 1)  # the last one stays as it is
    replaced[torch.arange(len(places)), places] = blank
    followed = next(iter(score(replaced).values()))
    return followed[-1] - followed[:-1]


def removal_area(score: Score, passage: Passage, relevance: Tensor, blank: int) -> dict[str, float]:
    """The area between two curves, by score: how far it stays higher when tokens with little relevance go first.

    Tokens are replaced by blanks one after the other, once from the least relevance to the most, once the other way
    round; the area is the mean over all steps of the difference (Achtibat et al., AttnLRP, ICML 2024).

    Args:
        score: of the passage with other tokens.
        passage: the text.
        relevance: of the measured tokens, (measured,).
        blank: what tokens are replaced by.
    """
    places = _places(passage)
    upwards = relevance.argsort(stable=True)
    downwards = relevance.argsort(descending=True, stable=True)
    found = score(torch.cat([_removed(passage.ids, places[order], blank) for order in (upwards, downwards)]))
    return {name: float((values[: len(values) // 2] - values[len(values) // 2 :]).mean())
            for name, values in found.items()}  # fmt: skip


def order_correlation(relevance: Tensor, fallen: Tensor) -> float | None:
    """Rank correlation of relevance with the falls, (measured,) each; ``None`` where one of them is constant."""
    found = float(rank_correlation(relevance.double()[None, None], fallen.double()[None, None]))
    return found if found == found else None


def _places(passage: Passage) -> Tensor:
    return torch.arange(passage.ids.shape[1], device=passage.ids.device)[passage.measured]


def _removed(ids: Tensor, order: Tensor, blank: int) -> Tensor:
    """The tokens with none replaced, then one, two, … in this order: (steps, tokens)."""
    steps = ids.repeat(len(order) + 1, 1)
    for step, place in enumerate(order.tolist(), start=1):
        steps[step:, place] = blank
    return steps
