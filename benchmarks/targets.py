"""What many explanations in one call cost, beside as many calls."""

from collections.abc import Iterator
from typing import Any

import torch

import fxlrp
from benchmarks.methods import Method, Trial
from benchmarks.runs import Benchmark, every

COUNT, LAYER = 8, "layer3"
"""How many explanations, K; and the module whose channels are conditions."""
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
VARIANTS = [f"{what}, {name}" for name in FORMATS for what in ("targets", "conditions")]


def _calls(trial: Trial) -> tuple[Any, list[Any]]:
    """One call for all K, and one for each."""
    what, name = trial.case.variant.split(", ")
    model, images = (each.to(memory_format=FORMATS[name]) for each in (trial.model, trial.images))
    explainer = fxlrp.compile(model)
    options = [{"target": 0, "conditions": {LAYER: [channel]}} for channel in range(COUNT)]
    together = {"target": 0, "conditions": [option["conditions"] for option in options]}
    if what == "targets":
        options, together = [{"target": target} for target in range(COUNT)], {"target": range(COUNT)}
    one = lambda: explainer(images, **together).relevance  # noqa: E731
    return one, [lambda option=option: explainer(images, **option).relevance for option in options]


def _apart(trial: Trial) -> Iterator[Any]:
    _, apart = _calls(trial)
    yield
    yield lambda: [call() for call in apart]


def _together(trial: Trial) -> Iterator[Any]:
    together, apart = _calls(trial)
    found, expected = together(), torch.stack([call() for call in apart], dim=1)
    scale = expected.abs().flatten(2).amax(2).clamp(min=1e-30)
    trial.facts["difference"] = float(((found - expected).abs().flatten(2).amax(2) / scale).max())
    yield
    yield together


METHODS = {"K calls": Method(_apart, "fxlrp", "fxlrp"), "one call": Method(_together, "fxlrp", "fxlrp")}
BENCHMARK = Benchmark(
    "targets", "Time K targets, and K conditions, in one call and in K calls.", __name__,
    every(["resnet50"], [1], VARIANTS), rounds=7, threads=1, facts={"difference": ".1e"},
)  # fmt: skip
