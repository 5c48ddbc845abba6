"""Whether the attention heads that relevance names are those that a model misses."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fxlrp.common.errors import EvaluationError
from fxlrp.evaluation.tokens.measures import Score, order_correlation
from fxlrp.evaluation.tokens.subject import Passage
from fxlrp.explainer import Explainer
from fxlrp.language.inside import Inside, Units

DRAWS = 20
"""So many times heads are drawn at random."""

_STACK = "blocks"


@dataclass(frozen=True)
class HeadRelevance:
    """What a method says about the heads of a model.

    Attributes:
        units: where the heads are.
        values: by the name of a head, such as ``L5H3``, its relevance, summed over tokens.
    """

    units: Units
    values: Mapping[str, float]


Fall = Callable[[Sequence[str]], float]
"""From names of heads: by how much what is followed falls when they are ablated, all at once."""


def relevance_of_heads(explainer: Explainer, model: Any, passage: Passage, target: int | None) -> HeadRelevance:
    """The relevance of all heads for a class.

    Args:
        explainer: has explained the model before.
        model: of transformers, whose ``config`` says how many heads there are.
        passage: a text.
        target: the class; ``None`` where there is one output.

    Raises:
        InputError: there is no attention on a skip.
    """
    units = Units.of(explainer, model.config)
    inputs: dict[str, Any] = dict(passage.inputs)
    found = explainer.relevance_of(nodes=units.nodes(_STACK), target=target, **inputs)
    amounts = units.amounts(_STACK, found, passage.places)
    heads = Inside(amounts, ("",) * passage.places, "").top_heads(sum(len(each) for each in amounts.values()))
    return HeadRelevance(units, dict(heads))


class Ablation:
    """A model with some of its heads replaced by zeros, asked about one passage; each set of heads once.

    Args:
        model: the model.
        score: of the passage with other content; its first score is followed.
        passage: the passage.
    """

    def __init__(self, model: Any, score: Score, passage: Passage) -> None:
        self.model, self.score, self.passage = model, score, passage
        self._scores: dict[frozenset[str], float] = {}

    def fall(self, units: Units, heads: Sequence[str]) -> float:
        """By how much what is followed falls when these heads are ablated."""
        return self._score(units, ()) - self._score(units, heads)

    def _score(self, units: Units, heads: Sequence[str]) -> float:
        key = frozenset(heads)
        if key not in self._scores:
            with units.ablated(self.model, list(heads)) if heads else nullcontext():
                self._scores[key] = float(next(iter(self.score(self.passage.content).values())))
        return self._scores[key]


def measured_heads(relevance: Mapping[str, float], fall: Fall, count: int, seed: int) -> dict[str, float]:
    """What becomes of a passage without heads that relevance names, and without others.

    Args:
        relevance: by the name of a head.
        fall: what is measured.
        count: how many heads are ablated at once.
        seed: of the draws; the same heads are drawn for every method.

    Returns:
        By how much what is followed changes, up or down, without the ``count`` heads with the ``"most"`` and with the
        ``"least"`` relevance by magnitude, and at ``"random"``, the mean of :data:`DRAWS` draws. ``"order"``: the rank
        correlation of the relevance of each head with the fall when it alone is ablated; left out where one of them is
        constant. ``"heads"``: how many there are.

    Raises:
        EvaluationError: there are fewer than twice as many heads.
    """
    if len(relevance) < 2 * count:
        raise EvaluationError(f"metrics.heads = {count}: the model has {len(relevance)} heads; give at most half")
    ranked = sorted(relevance, key=lambda name: -abs(relevance[name]))
    names, draw = sorted(relevance), random.Random(seed)
    order = order_correlation(
        torch.tensor([relevance[name] for name in names]), torch.tensor([fall([name]) for name in names])
    )
    found = {
        "most": abs(fall(ranked[:count])),
        "least": abs(fall(ranked[-count:])),
        "random": statistics.fmean(abs(fall(draw.sample(names, count))) for _ in range(DRAWS)),
        "heads": float(len(names)),
    }
    return found if order is None else found | {"order": order}
