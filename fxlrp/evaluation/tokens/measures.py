"""What is measured of a passage: whether the places that relevance names are those that the model misses, or known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.evaluation.agreement import rank_correlation
from fxlrp.evaluation.tokens.subject import Passage, TokenModel

Scores = dict[str, Tensor]
"""By name, (batch,). The first is what is followed."""

Score = Callable[[Tensor], Scores]
"""From other content of a passage, (batch, places, …), to its scores."""


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
    """The scores of a passage with other content; the model sees ``batch_size`` of them at a time."""

    def score(content: Tensor) -> Scores:
        parts = [scores(model(passage.with_content(some)), target) for some in torch.split(content, batch_size)]
        return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}

    return score


def falls(score: Score, passage: Passage, blank: float) -> Tensor:
    """By how much what is followed falls when each measured place is replaced by a blank: (measured,)."""
    places = _places(passage)
    replaced = _repeated(passage.content, len(places) + 1)  # the last one stays as it is
    replaced[torch.arange(len(places)), places] = blank
    followed = next(iter(score(replaced).values()))
    return followed[-1] - followed[:-1]


def removal_area(score: Score, passage: Passage, relevance: Tensor, blank: float) -> dict[str, float]:
    """The area between two curves, by score: how far it stays higher when places with little relevance go first.

    Places are replaced by blanks one after the other, once from the least relevance to the most, once the other way
    round; the area is the mean over all steps of the difference (Achtibat et al., AttnLRP, ICML 2024).

    Args:
        score: of the passage with other content.
        passage: is measured.
        relevance: of the measured places, (measured,).
        blank: what places are replaced by.
    """
    places = _places(passage)
    upwards = relevance.argsort(stable=True)
    downwards = relevance.argsort(descending=True, stable=True)
    found = score(torch.cat([_removed(passage.content, places[order], blank) for order in (upwards, downwards)]))
    return {name: float((values[: len(values) // 2] - values[len(values) // 2 :]).mean())
            for name, values in found.items()}  # fmt: skip


def order_correlation(relevance: Tensor, fallen: Tensor) -> float | None:
    """Rank correlation of relevance with the falls, (measured,) each; ``None`` where one of them is constant."""
    found = float(rank_correlation(relevance.double()[None, None], fallen.double()[None, None]))
    return found if found == found else None


def linear_correlation(relevance: Tensor, fallen: Tensor) -> float | None:
    """Pearson's correlation of relevance with the falls, (measured,) each; ``None`` where one of them is constant.

    Among many places that hardly matter it asks for those that do, where the rank correlation asks for all alike.
    """
    first, second = (values.double() - values.double().mean() for values in (relevance, fallen))
    scale = first.norm() * second.norm()
    return float(first @ second / scale) if scale > 0 else None


def found_truth(relevance: Tensor, truth: Tensor) -> dict[str, float]:
    """How well relevance finds the places that the right class is known to rest on; each from 0 to 1.

    Args:
        relevance: of the measured places, (measured,).
        truth: (measured,), whether a place is one of them.

    Returns:
        ``"first"``: whether the place with the largest magnitude is one of them. ``"first_signed"``: whether that with
        the most relevance is. ``"all_first"``: whether they have the largest magnitudes of all. ``"share"``: what part
        of all magnitudes lies on them. ``"precision"``: average precision of them in the order of magnitudes, 1 where
        they come first. Nothing where there are none of them.
    """
    if not truth.any():
        return {}
    size = relevance.abs()
    hits = truth[size.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    return {
        "first": float(hits[0]),
        "first_signed": float(truth[relevance.argmax()]),
        "all_first": float(hits[: int(truth.sum())].prod()),
        "share": float(size[truth].sum() / size.sum()) if size.any() else 0.0,
        "precision": float((precision * hits).sum() / hits.sum()),
    }


def _places(passage: Passage) -> Tensor:
    return torch.arange(passage.places, device=passage.content.device)[passage.measured]


def _repeated(content: Tensor, count: int) -> Tensor:
    """(count, places, …) from (1, places, …)."""
    return content.repeat(count, *[1] * (content.dim() - 1))


def _removed(content: Tensor, order: Tensor, blank: float) -> Tensor:
    """The content with no place replaced, then one, two, … in this order: (steps, places, …)."""
    steps = _repeated(content, len(order) + 1)
    for step, place in enumerate(order.tolist(), start=1):
        steps[step:, place] = blank
    return steps
