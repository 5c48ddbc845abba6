"""What uses of fxlrp cost: many explanations in one call, lower precision, insertion and deletion."""

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks import models
from benchmarks.methods import FORMATS, Case, Method, Steps, Trial
from benchmarks.runs import Benchmark, every, listed

COUNT, LAYER = 8, "layer3"
"""How many explanations, K; and the module whose channels are conditions."""


def _explain_several(trial: Trial, together: bool) -> Steps:
    """K explanations in one call, or in K calls."""
    what, name = trial.variant.split(", ")
    model, images = (each.to(memory_format=FORMATS[name]) for each in (trial.model, trial.images))
    explainer = fxlrp.compile(model)
    apart, at_once = [{"target": target} for target in range(COUNT)], [{"target": range(COUNT)}]
    if what == "conditions":
        conditions = [{LAYER: [channel]} for channel in range(COUNT)]
        apart, at_once = ([{"target": 0, "conditions": some} for some in each] for each in (conditions, [conditions]))

    def explained(calls: list[dict[str, Any]]) -> list[Tensor]:
        return [explainer(images, **options).relevance for options in calls]

    if together:
        (found,), expected = explained(at_once), torch.stack(explained(apart), dim=1)
        scale = expected.abs().flatten(2).amax(2).clamp(min=1e-30)
        trial.facts["difference"] = float(((found - expected).abs().flatten(2).amax(2) / scale).max())
    yield
    yield partial(explained, at_once if together else apart)


SEVERAL = {
    "K calls": Method(partial(_explain_several, together=False), "fxlrp"),
    "one call": Method(partial(_explain_several, together=True), "fxlrp"),
}
TARGETS = Benchmark(
    "targets", "Time K targets, and K conditions, in one call and in K calls.", f"{__name__}:SEVERAL",
    every(["resnet50"], [1], [f"{what}, {name}" for name in FORMATS for what in ("targets", "conditions")]),
    rounds=7, threads=1, facts={"difference": ".1e"},
)  # fmt: skip


def _photographs(case: Case) -> tuple[nn.Module, Tensor]:
    """EfficientNet-Lite0 with its trained weights, and the demo's photographs."""
    from examples.demo import PHOTOS, photo_folder
    from examples.efficientnet_lite0 import load
    from fxlrp.images import read_image, to_input

    loaded, photos = load(), [read_image(photo_folder() / name) for name in PHOTOS]
    return loaded.model, torch.stack([to_input(photo, loaded.preprocess) for photo in photos])


def _explain_in(trial: Trial, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Steps:
    exact = fxlrp.compile(copy.deepcopy(trial.model).double())(trial.images.double())
    model, images = trial.model.to(dtype), trial.images.to(dtype)

    def explained(explainer: fxlrp.Explainer) -> fxlrp.Explanation:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            return explainer(images, target=exact.target)

    trial.facts |= _errors(explained(fxlrp.compile(model)), exact)
    yield
    explainer = fxlrp.compile(model)
    yield lambda: explained(explainer)


def _errors(explanation: fxlrp.Explanation, exact: fxlrp.Explanation) -> dict[str, float]:
    """How far heatmaps are from the exact ones, the worst image: relative to the largest value, and in ranks."""
    # Maps are compared as shares of what entered, because a probability itself is rounded as well.
    maps, wanted = (fxlrp.heatmap(e.relevance).double() / e.start.double()[:, None, None] for e in (explanation, exact))
    ranks = [each.flatten(1).argsort().argsort().double() for each in (maps, wanted)]
    lost = explanation.relevance.double().sum((1, 2, 3)) / explanation.start.double() - 1
    return {
        "difference": float(((maps - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2))).max()),
        "rank_correlation": min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*ranks, strict=True)),
        "lost": float(lost.abs().max()),
    }


PRECISIONS = {
    name: Method(partial(_explain_in, **options), "fxlrp", channels_last=True, subject=_photographs)
    for name, options in {
        "float32": {}, "autocast to bfloat16": {"autocast": True}, "model in bfloat16": {"dtype": torch.bfloat16},
    }.items()
}  # fmt: skip
PRECISION = Benchmark(
    "precision", "Explain photographs in several precisions, and compare them with float64.", f"{__name__}:PRECISIONS",
    listed(Case("efficientnet_lite0", 4, 224)), facts={"difference": ".1e", "rank_correlation": ".4f", "lost": ".1e"},
)  # fmt: skip

CASES = [
    Case(model, 1, size, f"{step} pixels, {ties}, {levels or 'all'} levels")
    for model, size, step in (("cifar_resnet56", 32, 16), ("resnet18", 224, 1000), ("resnet50", 224, 2000))
    for ties, levels in (("strict", 0), ("plateau", 0), ("plateau", 8))
]


def _in_unit_interval(case: Case) -> tuple[nn.Module, Tensor]:
    """A model, and an image in [0, 1]."""
    model = models.build(case.model)
    return model, torch.rand(1, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))


def _insert_and_delete(trial: Trial, metric: bool) -> Steps:
    from fxlrp.evaluation import PlateauWarning, insertion_deletion

    pixels, ties, levels = (word.split()[0] for word in trial.variant.split(", "))
    size, generator = trial.images.shape[-1], torch.Generator().manual_seed(0)
    heat = torch.randperm(size * size, generator=generator).reshape(1, size, size).float()
    heat = heat if levels == "all" else fxlrp.quantize_heat(heat, int(levels))

    def measure() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlateauWarning)
            insertion_deletion(trial.model, trial.images, heat, 0, step=int(pixels), ties=ties, batch_size=32,
                               normalize=lambda x: (x - 0.45) / 0.22)  # fmt: skip

    counts: list[int] = []
    hook = trial.model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    measure()
    hook.remove()
    trial.facts["passes"] = sum(counts)
    batches = [] if metric else [models.noise(3, size, size, batch=count) for count in counts]
    yield
    yield measure if metric else torch.inference_mode()(lambda: [trial.model(batch) for batch in batches])


METRIC = {
    "forward passes": Method(partial(_insert_and_delete, metric=False), subject=_in_unit_interval),
    "metric": Method(partial(_insert_and_delete, metric=True), "fxlrp", subject=_in_unit_interval),
}
EVALUATION = Benchmark(
    "evaluation", "Time insertion and deletion of one image, and the same number of forward passes.",
    f"{__name__}:METRIC", listed(*CASES), rounds=5, threads=1, facts={"passes": ".0f"},
)  # fmt: skip
