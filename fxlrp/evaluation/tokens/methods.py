"""Methods that give each place of a passage a number: fxlrp in all its ways, floors, and methods of one's own."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import MethodError
from fxlrp.compiler import capture, compile
from fxlrp.evaluation.methods.relevance import compile_options, preset_of, rules_of
from fxlrp.evaluation.relevance_sums import INPUT
from fxlrp.evaluation.tokens.heads import HeadRelevance, relevance_of_heads
from fxlrp.evaluation.tokens.measures import falls, scored
from fxlrp.evaluation.tokens.subject import Passage, TokenModel
from fxlrp.loading.models import import_callable
from fxlrp.runtime.captures import CapturedModel


@dataclass(frozen=True)
class PlaceRelevance:
    """What a method says about a passage.

    Attributes:
        values: (places,).
        start: what entered at the output; ``None`` where nothing is distributed.
        magnitudes: Σ|R| at the input of modules, by name, and of all numbers at that of the model (``"input"``).
        heads: the relevance of attention heads; ``None`` where it was not asked for, or is not to be had.
    """

    values: Tensor
    start: float | None = None
    magnitudes: Mapping[str, float] = field(default_factory=dict)
    heads: HeadRelevance | None = None


ExplainPlaces = Callable[[Passage, int | None], PlaceRelevance]
"""From a passage and the class, ``None`` where there is one output."""


@dataclass
class Subject:
    """What methods are made for.

    Attributes:
        model: is explained.
        batch_size: how many passages it sees at a time.
        checkpoints: modules at whose input magnitudes of relevance are added up.
        heads: whether the relevance of attention heads is wanted.
    """

    model: TokenModel
    batch_size: int
    checkpoints: tuple[str, ...] = ()
    heads: bool = False
    _captured: CapturedModel | None = None

    @property
    def captured(self) -> CapturedModel:
        """The model, read once for all methods of fxlrp."""
        if self._captured is None:
            self._captured = capture(self.model.model, output=self.model.output)
        return self._captured


def relevance(subject: Subject, *, rules: Mapping[str, str] | None = None, **options: Any) -> ExplainPlaces:
    """Relevance by a preset of fxlrp, summed over the channels of a place, or the features of a token's embedding.

    Args:
        subject: what is explained.
        rules: rules as texts by pattern, as the command line takes them.
        **options: other options of :func:`fxlrp.compile`.
    """
    if subject.heads and not hasattr(subject.model.model, "config"):
        raise MethodError("heads are told of models of transformers, whose config says how many there are")
    own = preset_of(options)
    explainer = compile(subject.captured, rules=rules_of(rules), checkpoints=subject.checkpoints, **own)

    def explain(passage: Passage, target: int | None) -> PlaceRelevance:
        explanation = explainer(**passage.inputs, target=target)
        found = explanation.by_input[passage.name][0]
        arrived = {INPUT: found, **explanation.checkpoints} if subject.checkpoints else {}
        magnitudes = {name: float(values.double().abs().sum()) for name, values in arrived.items()}
        places = found.flatten(1).sum(1) if found.dim() > 1 else found
        heads = relevance_of_heads(explainer, subject.model.model, passage, target) if subject.heads else None
        return PlaceRelevance(places, float(explanation.start[0]), magnitudes, heads)

    return explain


def occlusion(subject: Subject) -> ExplainPlaces:
    """By how much what is followed falls when a place is replaced by a blank: the ceiling of its own measure."""

    def explain(passage: Passage, target: int | None) -> PlaceRelevance:
        values = torch.zeros(passage.places, dtype=torch.float64)
        score = scored(subject.model, passage, target, subject.batch_size)
        values[passage.measured] = falls(score, passage, subject.model.blank)
        return PlaceRelevance(values)

    return explain


def noise(subject: Subject, *, seed: int = 0) -> ExplainPlaces:
    """Noise, the same for the same passage."""

    def explain(passage: Passage, target: int | None) -> PlaceRelevance:
        content = zlib.crc32(passage.content.cpu().numpy().tobytes(), seed & 0xFFFFFFFF)
        return PlaceRelevance(torch.rand(passage.places, generator=torch.Generator().manual_seed(content)))

    return explain


def own(subject: Subject, *, function: str, options: Mapping[str, Any] | None = None) -> ExplainPlaces:
    """A method of one's own: ``package.module:function``.

    The function takes the :class:`~fxlrp.evaluation.tokens.TokenModel` and ``options``, and returns a function from
    a :class:`~fxlrp.evaluation.tokens.Passage` and a class, or ``None``, to one number for each place, (places,).
    """
    made = import_callable(function)(subject.model, **(options or {}))

    def explain(passage: Passage, target: int | None) -> PlaceRelevance:
        values = made(passage, target)
        expected = (passage.places,)
        if not isinstance(values, Tensor) or values.shape != expected:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MethodError(f"{function} must give a number for each place, {expected}, not {got}")
        return PlaceRelevance(values.detach())

    return explain


PASSAGE_KINDS: dict[str, Callable[..., ExplainPlaces]] = {
    "fxlrp": relevance,
    "occlusion": occlusion,
    "random": noise,
    "python": own,
}
"""The kinds of methods for passages: from a subject and options to the function that explains."""


def passage_options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind, by name; for fxlrp also those of ``compile``."""
    parameters = inspect.signature(PASSAGE_KINDS[kind], eval_str=True).parameters.values()
    options = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
    return compile_options() | options if kind == "fxlrp" else options
