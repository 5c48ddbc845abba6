"""What the methods that are compared on grids cost: their time over that of a forward pass of the same model.

    python -m examples.evaluation.costs FOLDER [--network lite0] [--rounds 5]

FOLDER holds one image of ImageNet per class, the sorted names in the order of the classes. Each method explains one
image of 224 × 224 pixels. Networks are EfficientNet-Lite0, with the methods of
``evidence/efficientnet_lite0_peers.toml``, and DINOv2 ViT-S/14 with a linear probe (:mod:`examples.dinov2`), whose
image is a grid. In every round the methods take turns; slow ones take three turns in all. A forward pass comes before
and after each of them, and the time of a method is divided by the mean of these two. The forward pass itself is one
of the methods, as a placebo. Times are processor time: a wait for other programs does not count. Everything runs step
by step, in as many threads as ``OMP_NUM_THREADS`` says; a time in several threads is the sum of theirs.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from examples.evaluation.grid_pointing import FROM_ATTENTION, subject
from fxlrp.evaluation.config_file import read_config
from fxlrp.evaluation.grid_pointing import grids
from fxlrp.evaluation.methods import prepare

PEERS = Path(__file__).parent / "evidence" / "efficientnet_lite0_peers.toml"
PRESETS = [("conserving", "probability"), ("attnlrp", "probability"), ("cp_lrp", "log_odds"), ("evidence", "log_odds")]

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


def on_lite0(folder: Path) -> tuple[nn.Module, dict[str, Explain], Tensor, int]:
    """The model, what explains it, an image that it is sure of, and its class."""
    model, sure = subject("lite0", folder)
    image, label = next(sure)
    methods = {each.spec.name: prepare(each.spec, model, image[None], trial=False)
               for each in read_config(PEERS).methods}  # fmt: skip
    return model, methods, image, label


def on_dinov2(folder: Path) -> tuple[nn.Module, dict[str, Explain], Tensor, int]:
    """The same with a grid of four images."""
    model, sure = subject("dinov2", folder)
    pairs = list(sure)
    (grid, (label, *_)), *_ = grids(torch.stack([image for image, _ in pairs]), [label for _, label in pairs], 1)
    methods: dict[str, Explain] = {f"{name}, {start}": method(model) for name, start, method in FROM_ATTENTION}
    for preset, start in PRESETS:
        explainer = fxlrp.compile(model, preset, start=start, example_inputs=grid[None])
        explainer(grid[None], target=label)  # it compiles what this call needs, which is not to count
        methods[f"{preset}, {start}"] = lambda inputs, targets, by=explainer: by(inputs, target=targets)
    return model, methods, grid, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", choices=("lite0", "dinov2"), default="lite0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verbose", action="store_true", help="print every turn")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model, methods, image, label = (on_lite0 if options.network == "lite0" else on_dinov2)(options.folder)
    print(f"{options.network}, {tuple(image[None].shape)}, {image.dtype}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, {platform.machine()}; {options.rounds} rounds")  # fmt: skip
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
