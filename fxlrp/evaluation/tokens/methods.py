"""Methods that give each token of a text a number: fxlrp in all its ways, floors, and methods of one's own."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fxlrp
from fxlrp.common.errors import MethodError
from fxlrp.compiler import capture, compile
from fxlrp.evaluation.methods.relevance import compile_options, preset_of, rules_of
from fxlrp.evaluation.tokens.measures import falls, scored
from fxlrp.evaluation.tokens.subject import Passage, TokenModel
from fxlrp.loading.models import import_callable
from fxlrp.runtime.captures import CapturedModel


@dataclass(frozen=True)
class TokenRelevance:
    """What a method says about a text.

    Attributes:
        values: (tokens,).
        start: what entered at the output; ``None`` where nothing is distributed.
    """

    values: Tensor
    start: float | None = None


ExplainTokens = Callable[[Passage, int | None], TokenRelevance]
"""From a text and the class, ``None`` where there is one output."""


@dataclass
class Subject:
    """What methods are made for.

    Attributes:
        model: is explained.
        batch_size: how many texts it sees at a time.
    """

    model: TokenModel
    batch_size: int
    _captured: CapturedModel | None = None

    @property
    def captured(self) -> CapturedModel:
        """The model, read once for all methods of fxlrp."""
        if self._captured is None:
            self._captured = capture(self.model.model, output=self.model.output)
        return self._captured


def relevance(subject: Subject, *, rules: Mapping[str, str] | None = None, **options: Any) -> ExplainTokens:
    """Relevance by a preset of fxlrp, summed over the features of a token's embedding.

    Args:
        subject: what is explained.
        rules: rules as texts by pattern, as the command line takes them.
        **options: other options of :func:`fxlrp.compile`.
    """
    explainer = compile(subject.captured, rules=rules_of(rules), **preset_of(options))

    def explain(passage: Passage, target: int | None) -> TokenRelevance:
        explanation = explainer(**passage.inputs, target=target)
        tokens = fxlrp.token_relevance(explanation.by_input[passage.name])
        return TokenRelevance(tokens[0], float(explanation.start[0]))

    return explain


def occlusion(subject: Subject) -> ExplainTokens:
    """By how much what is followed falls when a token is replaced by a blank: the ceiling of its own measure."""

    def explain(passage: Passage, target: int | None) -> TokenRelevance:
        values = torch.zeros(passage.ids.shape[1], dtype=torch.float64)
        score = scored(subject.model, passage, target, subject.batch_size)
        values[passage.measured] = falls(score, passage, subject.model.blank)
        return TokenRelevance(values)

    return explain


def noise(subject: Subject, *, seed: int = 0) -> ExplainTokens:
    """Noise, the same for the same text."""

    def explain(passage: Passage, target: int | None) -> TokenRelevance:
        content = zlib.crc32(passage.ids.cpu().numpy().tobytes(), seed & 0xFFFFFFFF)
        return TokenRelevance(torch.rand(passage.ids.shape[1], generator=torch.Generator().manual_seed(content)))

    return explain


def own(subject: Subject, *, function: str, options: Mapping[str, Any] | None = None) -> ExplainTokens:
    """A method of one's own: ``package.module:function``.

    The function takes the :class:`~fxlrp.evaluation.tokens.TokenModel` and ``options``, and returns a function from
    a :class:`~fxlrp.evaluation.tokens.Passage` and a class, or ``None``, to one number for each token, (tokens,).
    """
    made = import_callable(function)(subject.model, **(options or {}))

    def explain(passage: Passage, target: int | None) -> TokenRelevance:
        values = made(passage, target)
        expected = (passage.ids.shape[1],)
        if not isinstance(values, Tensor) or values.shape != expected:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MethodError(f"{function} must give a number for each token, {expected}, not {got}")
        return TokenRelevance(values.detach())

    return explain


TOKEN_KINDS: dict[str, Callable[..., ExplainTokens]] = {
    "fxlrp": relevance,
    "occlusion": occlusion,
    "random": noise,
    "python": own,
}
"""The kinds of methods for texts: from a subject and options to the function that explains."""


def token_options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind, by name; for fxlrp also those of ``compile``."""
    parameters = inspect.signature(TOKEN_KINDS[kind], eval_str=True).parameters.values()
    options = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
    return compile_options() | options if kind == "fxlrp" else options
