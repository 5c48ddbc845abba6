"""One process' share of an evaluation on texts: what is measured of each, and what methods cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from fxlrp.common.errors import EvaluationError, FxlrpError
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import measure_costs
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.measure import Failure, one_line
from fxlrp.evaluation.store import COSTS, Row, Store
from fxlrp.evaluation.tokens.measures import Score, falls, order_correlation, removal_area, scored
from fxlrp.evaluation.tokens.methods import TOKEN_KINDS, ExplainTokens, Subject, TokenRelevance
from fxlrp.evaluation.tokens.subject import Passage, TokenModel
from fxlrp.evaluation.workers import Workers


class Asked(NamedTuple):
    """A text that a model has read.

    Attributes:
        passage: as the model takes it.
        target: the class that it predicts; ``None`` where it has one output.
        score: of the passage with other tokens.
    """

    passage: Passage
    target: int | None
    score: Score


class TextRun:
    """One process' share of an evaluation on texts."""

    def __init__(self, config: Config, model: TokenModel, store: Store, workers: Workers) -> None:
        self.config, self.model, self.store, self.workers = config, model, store, workers
        self.methods: dict[str, ExplainTokens | Failure] | None = None

    def one(self, sample: Sample) -> bool:
        """Do a text and keep what was measured; whether all went well."""
        try:
            rows = self._measured(sample)
        except FxlrpError as error:
            failed = Failure("failed", one_line(error))._asdict()
            rows = [_row(sample) | {"method": entry.spec.name, **failed} for entry in self.config.methods]
        self.store.add(sample.index, rows)
        return all(row["status"] != "failed" for row in rows)

    def extras(self, samples: Sequence[Sample]) -> None:
        """Measure what methods cost, on the first text."""
        if self.workers.first and not (self.config.out / COSTS).exists() and samples:
            asked = self._asked(samples[0])
            calls = {name: partial(method, asked.passage, asked.target)
                     for name, method in self._methods().items() if not isinstance(method, Failure)}  # fmt: skip
            forward = partial(self.model, asked.passage.inputs)
            self.store.write_json(COSTS, measure_costs(calls, forward, self.workers.device))

    def unavailable(self) -> dict[str, str]:
        """By method, why it cannot explain this model."""
        return {name: each.reason for name, each in (self.methods or {}).items() if isinstance(each, Failure)}

    def _methods(self) -> Mapping[str, ExplainTokens | Failure]:
        if self.methods is None:
            subject = Subject(self.model, self.config.metrics.batch_size)
            self.methods = {}
            for entry in self.config.methods:
                name, kind, options = entry.spec.name, entry.spec.kind, entry.spec.options
                try:
                    self.methods[name] = TOKEN_KINDS[kind](subject, **options)
                except FxlrpError as error:
                    self.methods[name] = Failure("unavailable", one_line(error))
        return self.methods

    def _asked(self, sample: Sample) -> Asked:
        try:
            passage = self.model.read(sample.read())
        except Exception as error:  # the user's own
            raise EvaluationError(f"the text cannot be read: {one_line(error)}") from error
        moved = {name: value.to(self.workers.device) for name, value in passage.inputs.items()}
        passage = Passage(moved, passage.name, passage.measured)
        output = self.model(passage.inputs)
        target = None if output.dim() == 1 else int(output[0].argmax())
        return Asked(passage, target, scored(self.model, passage, target, self.config.metrics.batch_size))

    def _measured(self, sample: Sample) -> list[Row]:
        asked = self._asked(sample)
        fallen = falls(asked.score, asked.passage, self.model.blank)
        said = None if asked.target is None or self.model.say is None else self.model.say(asked.target)
        columns = _row(sample) | {
            "target": asked.target, "answer": said, "tokens": asked.passage.ids[0].tolist(),
        }  # fmt: skip
        rows = []
        for name, method in self._methods().items():
            row = columns | {"method": name, "status": "ok", "reason": ""}
            found = method if isinstance(method, Failure) else _explained(method, asked)
            if isinstance(found, Failure):
                rows.append(row | found._asdict())
                continue
            relevance = found.values.double()[asked.passage.measured].to(fallen.device)
            rows.append(row | {
                "start": found.start, "values": found.values.double().tolist(),
                "correlation": order_correlation(relevance, fallen),
                "areas": list(removal_area(asked.score, asked.passage, relevance, self.model.blank).items()),
            })  # fmt: skip
        return rows


def _explained(method: ExplainTokens, asked: Asked) -> TokenRelevance | Failure:
    try:
        found = method(asked.passage, asked.target)
    except Exception as error:  # a library may raise anything
        return Failure("failed", one_line(error))
    if not bool(torch.isfinite(found.values).all()):
        return Failure("failed", "what it gives holds NaN or infinity")
    return found


def _row(sample: Sample) -> Row:
    return {"index": sample.index, "text": sample.name}
