"""What the methods of an evaluation cost: their time over that of a forward pass of the same model.

    python -m examples.evaluation.costs CONFIG [--rounds 5]

CONFIG is that of an evaluation on images. Each method explains one image that the model is sure of; where the
configuration has ``cell``, it is a grid. In every round the methods take turns; slow ones take three turns in all. A
forward pass comes before and after each of them, and the time of a method is divided by the mean of these two. The
forward pass itself is one of the methods, as a placebo. Times are processor time: a wait for other programs does not
count. Everything runs step by step, in as many threads as ``OMP_NUM_THREADS`` says; a time in several threads is the
sum of theirs.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.evaluation import Config, prepare, read_config
from fxlrp.evaluation.evaluated_image import load_image
from fxlrp.evaluation.properties import made_grids, recognised
from fxlrp.evaluation.runner import load_subject

ENOUGH = 20
"""Among so many images there is one that the model is sure of."""

SLOW, SLOW_ROUNDS = 30, 3
"""What takes longer than so many forward passes takes so many turns, and needs no warming up."""

Explain = Callable[[Tensor, Tensor], Any]
"""From inputs, (batch, channels, height, width), and classes, (batch,), to whatever the method gives."""


def ratios(
    model: nn.Module, methods: dict[str, Explain], inputs: Tensor, targets: Tensor, rounds: int
) -> Iterator[tuple[str, float]]:
    """Name by name as they take turns, a method's time over that of a forward pass."""

    def forward(inputs: Tensor, targets: Tensor) -> Any:
        with torch.no_grad():
            return model(inputs)

    def seconds(call: Explain) -> float:
        begun = time.process_time()
        call(inputs, targets)
        return time.process_time() - begun

    turns = Counter(dict.fromkeys(("placebo", *methods), rounds + 1))
    while +turns:
        before = seconds(forward)
        for name, call in {"placebo": forward, **methods}.items():
            if not turns[name]:
                continue
            taken, after = seconds(call), seconds(forward)
            ratio = 2 * taken / (before + after)
            before = after
            first = turns[name] == rounds + 1
            turns[name] = SLOW_ROUNDS - 1 if first and ratio > SLOW else turns[name] - 1
            if not first or ratio > SLOW:  # the first turn of a fast one warms it up
                yield name, ratio


def subject(config: Config) -> tuple[nn.Module, dict[str, Explain], Tensor, int]:
    """The model, what explains it, an image that it is sure of, and its class."""
    model, preprocess = load_subject(config, "cpu")
    images = (load_image(sample, preprocess) for sample in config.samples())
    if config.metrics.cell is None:
        found, labels = recognised(islice(images, ENOUGH), model)
        image, label = found[0], labels[0]
    else:
        image, (label, *_) = made_grids(images, model, replace(config.metrics, grids=1))[0]
    methods = {each.spec.name: prepare(each.spec, model, image[None], trial=False) for each in config.methods}
    return model, methods, image, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verbose", action="store_true", help="print every turn")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    config = read_config(options.config)
    model, methods, image, label = subject(config)
    print(f"{config.model.name or config.model.spec}, {tuple(image[None].shape)}, {image.dtype}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}; "
          f"{options.rounds} rounds")  # fmt: skip
    found = defaultdict(list)
    for name, ratio in ratios(model.requires_grad_(False), methods, image[None], torch.tensor([label]), options.rounds):
        found[name].append(ratio)
        if options.verbose:
            print(f"{name:40s}{ratio:10.3g}", flush=True)
    print(f"{'method':40s}", *(f"{head:>10s}" for head in ("median", "least", "most", "turns")))
    for name, several in found.items():
        values = statistics.median(several), min(several), max(several), len(several)
        print(f"{name:40s}", *(f"{value:10.3g}" for value in values))


if __name__ == "__main__":
    main()
