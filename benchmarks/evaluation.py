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


def _method(metric: bool) -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        pixels, ties, levels = (word.split()[0] for word in trial.case.variant.split(", "))
        size, generator = trial.case.size, torch.Generator().manual_seed(0)
        heat = torch.randperm(size * size, generator=generator).reshape(1, size, size).float()
        heat = heat if levels == "all" else quantize_heat(heat, int(levels))

        def measure() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PlateauWarning)
                insertion_deletion(trial.model, trial.images, heat, 0, step=int(pixels), ties=ties,
                                   batch_size=BATCH_SIZE, normalize=lambda x: (x - 0.45) / 0.22)  # fmt: skip

        counts: list[int] = []
        hook = trial.model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
        measure()
        hook.remove()
        trial.facts["passes"] = sum(counts)
        batches = [] if metric else [models.noise(3, size, size, batch=count) for count in counts]
        yield
        yield measure if metric else torch.inference_mode()(lambda: [trial.model(batch) for batch in batches])

    return Method(steps, *(("fxlrp", "fxlrp") if metric else ("model",)))


METHODS = {"forward passes": _method(metric=False), "metric": _method(metric=True)}
BENCHMARK = Benchmark(
    "evaluation", "Time insertion and deletion of one image, and the same number of forward passes.",
    __name__, listed(*CASES), rounds=5, threads=1, facts={"passes": ".0f"},
)  # fmt: skip
