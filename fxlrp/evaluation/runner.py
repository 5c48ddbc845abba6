"""An evaluation from its configuration to its results."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.common.errors import EvaluationError, FxlrpError
from fxlrp.evaluation import properties, randomized
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import measure_costs
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.evaluated_image import EvaluatedImage, load_image
from fxlrp.evaluation.forward import forward_by
from fxlrp.evaluation.measure import Prepared, failed_rows, measure, one_line, prepare_all
from fxlrp.evaluation.store import COSTS, PROPERTIES, RANDOMIZED, Store
from fxlrp.evaluation.tokens.run import PassageRun
from fxlrp.evaluation.tokens.subject import load_token_model
from fxlrp.evaluation.workers import Workers
from fxlrp.loading.images import Preprocess
from fxlrp.loading.models import load_model


@dataclass(frozen=True)
class Progress:
    """How far a run is, in this process.

    Attributes:
        done: images, or passages, of this process that are done.
        total: those of this process.
        before: those that an earlier run did.
        seconds: since the first one was begun.
        failures: those of this process of which something failed.
        sample: the one that was done last.
    """

    done: int
    total: int
    before: int
    seconds: float
    failures: int
    sample: Sample | None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        images: how many images, or passages, there are in the results.
        before: how many an earlier run did.
        failures: images among them of which something failed.
        unavailable: by method, why it cannot explain this model.
    """

    images: int
    before: int
    failures: int
    unavailable: dict[str, str]


def evaluate(config: Config, *, progress: Report | None = None, retry_failed: bool = False) -> Finished | None:
    """Run an evaluation, or what an earlier run left of it.

    Under ``torchrun`` every process calls this and does its share; the results are the same for any number of them.

    Args:
        config: what to do.
        progress: called after every image, or passage, of this process.
        retry_failed: try again what failed in an earlier run.

    Returns:
        What came of it; ``None`` in all processes but the first.

    Raises:
        FxlrpError: something in the configuration is not to be had; nothing has been written then.
    """
    torch.set_num_threads(config.run.threads)
    workers = Workers(config.run.device)
    samples = config.samples()
    store = Store(config.out, passages=config.passages)
    run: _Run | PassageRun
    if config.passages:
        specs = dict.fromkeys(subject.model.spec for subject in config.subjects)
        models = {spec: load_token_model(spec, workers.device) for spec in specs}
        run = PassageRun(config, models, store, workers)
    else:
        run = _Run(config, *load_subject(config, workers.device), store, workers)
    with workers, closing(store):
        done = workers.agree(_opened(store, config, samples, retry_failed) if workers.first else None)
        remaining = workers.share([sample for sample in samples if sample.index not in done])
        before = sum(sample.index in done for sample in samples)
        _all(run, remaining, before, progress)
        workers.wait()
        if workers.first:
            store.maps.collect()
        run.extras(samples)
        if not workers.first:
            return None
        return Finished(len(samples), before, len(store.failed()), run.unavailable())


def _opened(store: Store, config: Config, samples: Sequence[Sample], retry_failed: bool) -> Any:
    """The images that are done already, or the error that says why the folder cannot be used."""
    versions = {"fxlrp": fxlrp.__version__, "torch": torch.__version__}
    try:
        store.open(config.fingerprint(), {"title": config.title, "images": len(samples)} | versions)
        if retry_failed:
            store.forget_failed()
        return store.done()
    except FxlrpError as error:
        return error


def load_subject(config: Config, device: torch.device | str) -> tuple[nn.Module, Preprocess]:
    """The model of a configuration, and its preprocessing.

    Raises:
        WeightsError: there is no such model, or its weights do not fit.
    """
    weights = config.model.weights
    loaded = load_model(config.model.spec, None if weights is None else config.folder / weights)
    assert loaded.preprocess is not None
    return loaded.model.to(device).requires_grad_(False), loaded.preprocess


def _all(run: _Run | PassageRun, samples: Sequence[Sample], before: int, progress: Report | None) -> None:
    failures, begun = 0, time.perf_counter()
    for done, sample in enumerate(samples, start=1):
        failures += not run.one(sample)
        if progress is not None:
            progress(Progress(done, len(samples), before, time.perf_counter() - begun, failures, sample))


class _Run:
    """One process' share of an evaluation on images."""

    def __init__(
        self, config: Config, model: nn.Module, preprocess: Preprocess, store: Store, workers: Workers
    ) -> None:
        self.config, self.model, self.preprocess, self.store, self.workers = config, model, preprocess, store, workers
        self.forward = forward_by(model, config.metrics.backend, config.metrics.batch_size)
        self.methods: list[Prepared] | None = None

    def one(self, sample: Sample) -> bool:
        """Do an image and keep what was measured; whether all went well."""
        maps = None
        try:
            image = load_image(sample, self.preprocess, self.workers.device)
            methods = self._methods(image)
            rows, maps = measure(image, methods, self.model, self.config.metrics, self.forward)
        except FxlrpError as error:
            rows = failed_rows(sample, self.config.methods, one_line(error))
        self.store.add(sample.index, rows, maps if self.config.run.maps else None, sample.label)
        return all(row["status"] != "failed" for row in rows)

    def _methods(self, image: EvaluatedImage) -> list[Prepared]:
        if self.methods is None:
            compiled = self.forward if self.forward is not self.model else None
            self.methods = prepare_all(self.config.methods, self.model, image.input, self.config.metrics, compiled)
        return self.methods

    def extras(self, samples: Sequence[Sample]) -> None:
        """What is measured on a few images once the others are done: costs, properties, maps of randomised weights."""
        metrics = self.config.metrics
        wanted = {COSTS: 1, PROPERTIES: metrics.properties or metrics.grids, RANDOMIZED: metrics.randomize}
        missing = self.workers.agree(
            [name for name, count in wanted.items() if count and not (self.config.out / name).exists()]
        )
        if not missing:
            return
        images = list(islice(self._images(samples), max(1, metrics.randomize, metrics.properties)))
        if not images:
            return
        if COSTS in missing and self.workers.first:
            # All of them run step by step, as does the forward pass that they are compared with.
            inputs = images[0].input
            methods = prepare_all(self.config.methods, self.model, inputs, self.config.metrics)
            with torch.no_grad():
                target = self.model(inputs).argmax(dim=1)
            calls = {m.entry.spec.name: partial(m.explain, inputs, target) for m in methods if m.explain is not None}
            forward = torch.no_grad()(partial(self.model, inputs))
            self.store.write_json(COSTS, measure_costs(calls, forward, self.workers.device, metrics.rounds))
        if PROPERTIES in missing:
            self.workers.wait()  # costs are timed while all others rest
            self._properties(samples, images)
        if RANDOMIZED in missing:
            self.workers.wait()  # costs are timed while all others rest
            chosen = self.workers.share(images[: metrics.randomize])
            own = randomized.randomized(self.model, chosen, self._methods(images[0]))
            shares = self.workers.gather(own)
            if self.workers.first:
                count = min(len(images), metrics.randomize)
                self.store.write_json(RANDOMIZED, {"images": count, **randomized.joined(shares)})

    def _properties(self, samples: Sequence[Sample], images: Sequence[EvaluatedImage]) -> None:
        metrics, workers = self.config.metrics, self.workers
        methods = self._methods(images[0])
        images = images[: metrics.properties]
        grids: list[tuple[Tensor, list[int]]] = []
        try:
            if metrics.grids:
                grids = properties.made_grids(self._images(samples), self.model, metrics)
        except EvaluationError as error:  # what else was measured is not lost
            warnings.warn(f"no grids: {error}", stacklevel=2)
        of_images = [
            partial(properties.of_image, image, self.model, patch=metrics.patch) for image in workers.share(images)
        ]
        of_grids = [partial(properties.of_grid, grid, metrics.patch) for grid in workers.share(grids)]
        shares = [workers.gather(properties.measured(methods, measures)) for measures in (of_images, of_grids)]
        if workers.first:
            by_image, by_grid = map(properties.joined, shares)
            self.store.write_json(
                PROPERTIES, {"images": len(images), "grids": len(grids), "by_image": by_image, "by_grid": by_grid}
            )

    def _images(self, samples: Sequence[Sample]) -> Iterator[EvaluatedImage]:
        for sample in samples:
            with suppress(FxlrpError):
                yield load_image(sample, self.preprocess, self.workers.device)

    def unavailable(self) -> dict[str, str]:
        return {m.entry.spec.name: m.reason for m in self.methods or [] if m.explain is None}
