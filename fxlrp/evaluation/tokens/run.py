"""One process' share of an evaluation on passages: what is measured of each, and what methods cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch

from fxlrp.common.errors import EvaluationError, FxlrpError
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import measure_costs
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.measure import Failure, one_line
from fxlrp.evaluation.store import COSTS, Row, Store
from fxlrp.evaluation.tokens.heads import Ablation, measured_heads
from fxlrp.evaluation.tokens.measures import (
    Score,
    falls,
    found_truth,
    linear_correlation,
    order_correlation,
    removal_area,
    scored,
)  # fmt: skip
from fxlrp.evaluation.tokens.methods import PASSAGE_KINDS, ExplainPlaces, PlaceRelevance, Subject
from fxlrp.evaluation.tokens.subject import Passage, TokenModel
from fxlrp.evaluation.workers import Workers


class Asked(NamedTuple):
    """A passage that a model has read.

    Attributes:
        model: what read it.
        passage: as the model takes it.
        target: the class that it predicts; ``None`` where it has one output.
        score: of the passage with other content.
    """

    model: TokenModel
    passage: Passage
    target: int | None
    score: Score


class PassageRun:
    """One process' share of an evaluation on passages.

    Args:
        config: what to do.
        models: the models of its subjects, by their specifications.
        store: where results are kept.
        workers: the processes.
    """

    def __init__(self, config: Config, models: Mapping[str, TokenModel], store: Store, workers: Workers) -> None:
        self.config, self.models, self.store, self.workers = config, models, store, workers
        self.specs = {subject.name: subject.model.spec for subject in config.subjects}
        self.methods: dict[str, dict[str, ExplainPlaces | Failure]] = {}

    def one(self, sample: Sample) -> bool:
        """Do a passage and keep what was measured; whether all went well."""
        try:
            rows = self._measured(sample)
        except FxlrpError as error:
            failed = Failure("failed", one_line(error))._asdict()
            rows = [_row(sample) | {"method": entry.spec.name, **failed} for entry in self.config.methods]
        self.store.add(sample.index, rows)
        return all(row["status"] != "failed" for row in rows)

    def extras(self, samples: Sequence[Sample]) -> None:
        """Measure what methods cost, on the first passage of each subject that can be read."""
        if not self.workers.first or (self.config.out / COSTS).exists():
            return
        costs = {name: self._costs(sample for sample in samples if sample.subject == name) for name in self.specs}
        self.store.write_json(COSTS, costs.get("", costs))

    def unavailable(self) -> dict[str, str]:
        """By method, why it cannot explain this model, or the first of several."""
        made = [item for methods in self.methods.values() for item in methods.items()]
        return {name: each.reason for name, each in reversed(made) if isinstance(each, Failure)}

    def _costs(self, samples: Iterable[Sample]) -> dict[str, Any]:
        for sample in samples:
            with suppress(FxlrpError):  # its reason is among the results
                return self._costs_on(sample, self._asked(sample))
        return {}

    def _costs_on(self, sample: Sample, asked: Asked) -> dict[str, Any]:
        calls = {name: partial(method, asked.passage, asked.target)
                 for name, method in self._methods(sample).items() if not isinstance(method, Failure)}  # fmt: skip
        return measure_costs(calls, partial(asked.model, asked.passage.inputs), self.workers.device,
                             self.config.metrics.rounds)  # fmt: skip

    def _methods(self, sample: Sample) -> Mapping[str, ExplainPlaces | Failure]:
        spec = self.specs[sample.subject]
        if spec not in self.methods:
            metrics = self.config.metrics
            subject = Subject(self.models[spec], metrics.batch_size, metrics.checkpoints, metrics.heads > 0)
            made: dict[str, ExplainPlaces | Failure] = {}
            for entry in self.config.methods:
                name, kind, options = entry.spec.name, entry.spec.kind, entry.spec.options
                try:
                    made[name] = PASSAGE_KINDS[kind](subject, **options)
                except FxlrpError as error:
                    made[name] = Failure("unavailable", one_line(error))
            self.methods[spec] = made
        return self.methods[spec]

    def _asked(self, sample: Sample) -> Asked:
        model = self.models[self.specs[sample.subject]]
        passage = sample.read()
        if not isinstance(passage, Passage):
            if model.read is None:
                raise EvaluationError("the model reads no texts: its TokenModel has no read")
            try:
                passage = model.read(passage)
            except Exception as error:  # the user's own
                raise EvaluationError(f"the text cannot be read: {one_line(error)}") from error
        passage = passage.to(self.workers.device)
        output = model(passage.inputs)
        target = None if output.dim() == 1 else int(output[0].argmax())
        return Asked(model, passage, target, scored(model, passage, target, self.config.metrics.batch_size))

    def _measured(self, sample: Sample) -> list[Row]:
        asked = self._asked(sample)
        passage, blank = asked.passage, asked.model.blank
        fallen = falls(asked.score, passage, blank)
        said = None if asked.target is None or asked.model.say is None else asked.model.say(asked.target)
        columns = _row(sample) | {
            "label": passage.label, "target": asked.target, "answer": said,
            "tokens": None if passage.content.is_floating_point() else passage.content[0].tolist(),
        }  # fmt: skip
        ablation = Ablation(asked.model.model, asked.score, passage)
        rows = []
        for name, method in self._methods(sample).items():
            row = columns | {"method": name, "status": "ok", "reason": ""}
            found = method if isinstance(method, Failure) else _explained(method, asked)
            if isinstance(found, Failure):
                rows.append(row | found._asdict())
                continue
            relevance = found.values.double()[passage.measured].to(fallen.device)
            rows.append(row | {
                "start": found.start, "values": found.values.double().tolist(),
                "correlation": order_correlation(relevance, fallen), "linear": linear_correlation(relevance, fallen),
                "areas": list(removal_area(asked.score, passage, relevance, blank).items()),
                "truth": list(_truth(passage, relevance).items()), "magnitudes": list(found.magnitudes.items()),
                "heads": list(self._heads(found, ablation, sample.index).items()),
            })  # fmt: skip
        return rows

    def _heads(self, found: PlaceRelevance, ablation: Ablation, seed: int) -> dict[str, float]:
        if found.heads is None:
            return {}
        fall = partial(ablation.fall, found.heads.units)
        return measured_heads(found.heads.values, fall, self.config.metrics.heads, seed)


def _truth(passage: Passage, relevance: torch.Tensor) -> dict[str, float]:
    if passage.truth is None:
        return {}
    return found_truth(relevance, passage.truth[passage.measured].to(relevance.device))


def _explained(method: ExplainPlaces, asked: Asked) -> PlaceRelevance | Failure:
    try:
        found = method(asked.passage, asked.target)
    except Exception as error:  # a library may raise anything
        return Failure("failed", one_line(error))
    if not bool(torch.isfinite(found.values).all()):
        return Failure("failed", "what it gives holds NaN or infinity")
    return found


def _row(sample: Sample) -> Row:
    return {"index": sample.index, "subject": sample.subject, "text": sample.name}
