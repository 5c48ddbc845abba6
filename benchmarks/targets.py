"""What many explanations in one call cost, beside as many calls."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fxlrp
from benchmarks.methods import Method, Trial
from benchmarks.runs import Benchmark, every

COUNT, LAYER = 8, "layer3"
"""How many explanations, K; and the module whose channels are conditions."""
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
VARIANTS = [f"{what}, {name}" for name in FORMATS for what in ("targets", "conditions")]


def _method(together: bool) -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        what, name = trial.case.variant.split(", ")
        model, images = (each.to(memory_format=FORMATS[name]) for each in (trial.model, trial.images))
        explainer = fxlrp.compile(model)
        ways = [{"target": target} for target in range(COUNT)], {"target": range(COUNT)}
        if what == "conditions":
            conditions = [{LAYER: [channel]} for channel in range(COUNT)]
            ways = [{"target": 0, "conditions": one} for one in conditions], {"target": 0, "conditions": conditions}

        def apart() -> list[Tensor]:
            return [explainer(images, **options).relevance for options in ways[0]]

        def at_once() -> Tensor:
            return explainer(images, **ways[1]).relevance

        if together:
            found, expected = at_once(), torch.stack(apart(), dim=1)
            scale = expected.abs().flatten(2).amax(2).clamp(min=1e-30)
            trial.facts["difference"] = float(((found - expected).abs().flatten(2).amax(2) / scale).max())
        yield
        yield at_once if together else apart

    return Method(steps, "fxlrp", "fxlrp")


METHODS = {"K calls": _method(together=False), "one call": _method(together=True)}
BENCHMARK = Benchmark(
    "targets", "Time K targets, and K conditions, in one call and in K calls.", __name__,
    every(["resnet50"], [1], VARIANTS), rounds=7, threads=1, facts={"difference": ".1e"},
)  # fmt: skip
