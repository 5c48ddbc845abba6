"""Right for the right reasons: a network trained with a loss on its relevance.

    python -m examples.relevance_loss

Digits with a decoy (after Ross et al., "Right for the Right Reasons", IJCAI 2017): a grey patch in a corner,
whose shade gives the class away in training and says nothing in testing. A plain network learns the shade. The
other one pays for relevance on the patch, λ · Σ_patch |R| / Σ |R|, and has to learn the digits. It takes about a
minute on one core; the digits come with scikit-learn (the extra ``examples``), so that nothing is downloaded.

The rule is ε, whose relevance has both signs. The z⁺ rule tells what speaks for a class alone: a network that pays
for that lets the patch speak against the other classes instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import fxlrp
from fxlrp.extras import require
from fxlrp.render import colorize, enlarge, save_png

PRESET = fxlrp.Preset("epsilon", linear=fxlrp.rules.Epsilon(0.1))
PENALTY = 10.0  # λ
TRAINING, EPOCHS, BATCH = 1200, 30, 64
SIDE, PATCH = 24, 6
OUT = Path("demo/relevance_loss.png")


class Digits(NamedTuple):
    """Images (count, 1, SIDE, SIDE) from 0 to 1, their classes (count,), and ones where the decoy is."""

    images: Tensor
    classes: Tensor
    decoy: Tensor


def load(generator: torch.Generator) -> tuple[Digits, Digits]:
    """The digits with decoys: to train with, and to test with."""
    found = require("sklearn.datasets", "examples").load_digits()
    order = torch.randperm(len(found.target), generator=generator)
    small = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    classes = torch.tensor(found.target)[order]
    margin = (SIDE - 16) // 2
    images = F.pad(F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False), [margin] * 4)

    telling = classes[:TRAINING]
    shade = torch.cat([telling, torch.randint(10, (len(classes) - TRAINING,), generator=generator)])
    decoy = torch.zeros_like(images)
    for mask, corner in zip(decoy, torch.randint(4, (len(classes),), generator=generator).tolist(), strict=True):
        top, left = ((SIDE - PATCH) * place for place in divmod(corner, 2))
        mask[:, top : top + PATCH, left : left + PATCH] = 1
    images = torch.lerp(images, (0.1 + 0.1 * shade).reshape(-1, 1, 1, 1), decoy)
    return Digits(images[:TRAINING], telling, decoy[:TRAINING]), Digits(
        images[TRAINING:], classes[TRAINING:], decoy[TRAINING:]
    )


def network() -> nn.Module:
    """In eval mode, which changes nothing here: it has neither dropout nor batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def on_decoy(relevance: Tensor, decoy: Tensor) -> Tensor:
    """The share of relevance, by magnitude, that lies on the decoy: (batch,)."""
    magnitude = relevance.abs()
    return (magnitude * decoy).sum((1, 2, 3)) / magnitude.sum((1, 2, 3))


def train(data: Digits, penalty: float, epochs: int) -> nn.Module:
    """A network trained with cross entropy and, where ``penalty`` is not 0, with a loss on its relevance."""
    torch.manual_seed(0)
    model = network()
    explainer = fxlrp.compile(model, PRESET, start="logit", differentiable=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.classes)).split(BATCH):
            images, classes, decoy = (part[chosen] for part in data)
            if penalty:
                explanation = explainer(images, target=classes)  # one pass gives the output too
                loss = F.cross_entropy(explanation.output, classes)
                loss = loss + penalty * on_decoy(explanation.relevance, decoy).mean()
            else:
                loss = F.cross_entropy(model(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def relevance_of(model: nn.Module, data: Digits) -> Tensor:
    """The relevance of each digit's own class, like the images."""
    return fxlrp.compile(model, PRESET, start="logit")(data.images, target=data.classes).relevance


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    return float((model(data.images).argmax(1) == data.classes).double().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.relevance_loss", description="A loss on relevance.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training, for each network (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the picture (%(default)s)")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    training, testing = load(torch.Generator().manual_seed(0))

    console.print("                 accuracy           relevance on the decoy")
    console.print("                 training  testing  training  testing")
    maps = []
    for name, penalty in (("plain", 0.0), (f"penalty {PENALTY:g}", PENALTY)):
        began = time.perf_counter()
        model = train(training, penalty, options.epochs)
        taken = time.perf_counter() - began
        shares = [float(on_decoy(relevance_of(model, data), data.decoy).mean()) for data in (training, testing)]
        maps.append(fxlrp.heatmap(relevance_of(model, testing)))
        numbers = [accuracy(model, training), accuracy(model, testing), *shares]
        columns = "".join(f"{100 * number:7.1f} % " for number in numbers)
        console.print(f"{name:14}{columns} ({taken:.0f} s)")
    console.print(f"picture: {save_png(picture(testing, *maps), options.out)}", soft_wrap=True)


def picture(data: Digits, before: Tensor, after: Tensor, count: int = 8) -> Tensor:
    """Test images and, below, their maps of the plain network and of the one that paid: uint8 (height, width, 3).

    Args:
        data: the images.
        before: (count or more, SIDE, SIDE), relevance.
        after: the same of the other network.
        count: how many images.
    """
    grey = (255 * data.images[:count]).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    rows = [list(grey), *([colorize(found) for found in maps[:count]] for maps in (before, after))]
    framed = [[F.pad(tile, (0, 0, 1, 1, 1, 1), value=255) for tile in row] for row in rows]
    return enlarge(torch.cat([torch.cat(row, dim=1) for row in framed]), 468)


if __name__ == "__main__":
    main()
