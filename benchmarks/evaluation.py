"""What insertion and deletion cost beside the forward passes in them."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import models
from benchmarks.methods import Case, Method, Trial
from benchmarks.runs import Benchmark, listed
from fxlrp import quantize_heat
from fxlrp.evaluation import PlateauWarning, insertion_deletion

BATCH_SIZE = 32
CASES = [
    Case(model, 1, size, f"{step} pixels, {ties}, {levels or 'all'} levels")
    for model, size, step in (("cifar_resnet56", 32, 16), ("resnet18", 224, 1000), ("resnet50", 224, 2000))
    for ties, levels in (("strict", 0), ("plateau", 0), ("plateau", 8))
]


def subject(case: Case) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model, and an image in [0, 1]."""
    model = models.build(case.model)
    return model, torch.rand(1, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))


def _prepared(trial: Trial) -> tuple[Any, list[int]]:
    """The metric as a call, and how many images each of its forward passes takes."""
    pixels, ties, levels = (word.split()[0] for word in trial.case.variant.split(", "))
    order = torch.randperm(trial.case.size**2, generator=torch.Generator().manual_seed(0))
    heat = order.reshape(1, trial.case.size, trial.case.size).float()
    heat = heat if levels == "all" else quantize_heat(heat, int(levels))

    def metric() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlateauWarning)
            insertion_deletion(trial.model, trial.images, heat, 0, step=int(pixels), ties=ties, batch_size=BATCH_SIZE,
                               normalize=lambda x: (x - 0.45) / 0.22)  # fmt: skip

    sizes: list[int] = []
    hook = trial.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    metric()
    hook.remove()
    trial.facts["passes"] = sum(sizes)
    return metric, sizes


def _forward(trial: Trial) -> Iterator[Any]:
    batches = [models.noise(3, trial.case.size, trial.case.size, batch=size) for size in _prepared(trial)[1]]
    yield
    yield torch.inference_mode()(lambda: [trial.model(batch) for batch in batches])


def _metric(trial: Trial) -> Iterator[Any]:
    metric, _ = _prepared(trial)
    yield
    yield metric


METHODS = {"forward passes": Method(_forward, "model"), "metric": Method(_metric, "fxlrp", "fxlrp")}
BENCHMARK = Benchmark(
    "evaluation", "Time insertion and deletion of one image, and the same number of forward passes.",
    __name__, listed(*CASES), rounds=5, threads=1, facts={"passes": ".0f"},
)  # fmt: skip
