"""What lower precision costs, and does to an explanation: a trained EfficientNet-Lite0, the demo's photographs."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fxlrp
from benchmarks.methods import Case, Method, Trial
from benchmarks.runs import Benchmark, listed


def subject(case: Case) -> tuple[torch.nn.Module, Tensor]:
    """The model with its weights, and four photographs."""
    from examples.demo import PHOTOS, photo_folder
    from examples.efficientnet_lite0 import load
    from fxlrp.images import read_image, to_input

    loaded, photos = load(), [read_image(photo_folder() / name) for name in PHOTOS]
    return loaded.model, torch.stack([to_input(photo, loaded.preprocess) for photo in photos])


def _method(dtype: torch.dtype = torch.float32, autocast: bool = False) -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        exact = fxlrp.compile(copy.deepcopy(trial.model).double())(trial.images.double())
        model, images = trial.model.to(dtype), trial.images.to(dtype)

        def explained(explainer: fxlrp.Explainer) -> fxlrp.Explanation:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                return explainer(images, target=exact.target)

        trial.facts |= _errors(explained(fxlrp.compile(model)), exact)
        yield
        explainer = fxlrp.compile(model)
        yield lambda: explained(explainer)

    return Method(steps, "fxlrp", "fxlrp", channels_last=True)


def _errors(explanation: fxlrp.Explanation, exact: fxlrp.Explanation) -> dict[str, float]:
    """How far heatmaps are from the exact ones, the worst image: relative to the largest value, and in ranks."""
    # Maps are compared as shares of what entered, because a probability itself is rounded as well.
    maps, wanted = (fxlrp.heatmap(e.relevance).double() / e.start.double()[:, None, None] for e in (explanation, exact))
    ranks = [torch.stack([each.flatten().argsort().argsort().double() for each in pair])
             for pair in zip(maps, wanted, strict=True)]  # fmt: skip
    lost = explanation.relevance.double().sum((1, 2, 3)) / explanation.start.double() - 1
    return {
        "difference": float(((maps - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2))).max()),
        "rank_correlation": min(float(torch.corrcoef(pair)[0, 1]) for pair in ranks),
        "lost": float(lost.abs().max()),
    }


METHODS = {
    "float32": _method(),
    "autocast to bfloat16": _method(autocast=True),
    "model in bfloat16": _method(torch.bfloat16),
}
BENCHMARK = Benchmark(
    "precision", "Explain photographs in several precisions, and compare them with float64.", __name__,
    listed(Case("efficientnet_lite0", 4, 224)), facts={"difference": ".1e", "rank_correlation": ".4f", "lost": ".1e"},
)  # fmt: skip
