"""Train a classifier for an evaluation: ResNet-50 on CUB-200-2011 as in Table A of Otsuki et al. (ECCV 2024).

    python -m examples.train_cub CUB_200_2011 --out cub --weights resnet50.pth      # from ImageNet's weights
    python -m examples.train_cub cifar10.npz --out cifar --model resnet18 --size 32

SGD with momentum 0.9, learning rate 1e-3 and a tenth of it every 30 epochs, weight decay 1e-4, batches of 32, images of
224 × 224 with flips and crops; training ends after 6 epochs without a better validation loss. Stopped at any moment,
the same command goes on after the last whole epoch. ``best.pt`` holds the weights with the least validation loss:

    fxlrp explain bird.jpg --model torchvision:resnet50 --weights cub/best.pt

It also takes a folder with one folder a class, and npz files with ``images`` and ``labels``; of these a tenth is held
out for validation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fxlrp.checkpoints import fit, read_checkpoint
from fxlrp.errors import DataError, FxlrpError
from fxlrp.evaluation import data
from fxlrp.evaluation.data import Sample
from fxlrp.files import whole
from fxlrp.images import IMAGENET_MEAN, IMAGENET_STD

console = Console(highlight=False)


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's."""

    model: str = "resnet50"
    size: int = 224
    batch_size: int = 32
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_every: int = 30
    patience: int = 6
    epochs: int = 300
    validation: int = 600
    seed: int = 0


class Images(Dataset[tuple[Tensor, int]]):
    """Samples as a network takes them."""

    def __init__(self, samples: Sequence[Sample], transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        sample = self.samples[place]
        assert sample.label is not None
        return self.transform(sample.read()), sample.label


def load_samples(path: Path, recipe: Recipe) -> tuple[list[Sample], list[Sample]]:
    """Images to train with and to validate with."""
    if (path / "train_test_split.txt").exists():
        train = data.cub(path, "train", recipe.seed, recipe.validation)
        return train, data.cub(path, "validation", recipe.seed, recipe.validation)
    samples = data.arrays(path) if path.suffix == ".npz" else data.image_folder(path)
    if any(sample.label is None for sample in samples):
        raise DataError(f"{path} has no labels")
    held_out = {s.index for s in data.choose(samples, count=max(1, len(samples) // 10), seed=recipe.seed)}
    return [s for s in samples if s.index not in held_out], [s for s in samples if s.index in held_out]


def loaders(path: Path, recipe: Recipe, workers: int) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """Batches to train with, batches to validate with, and the number of classes."""
    train, validation = load_samples(path, recipe)
    normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    larger = round(recipe.size * 256 / 224)
    varied = transforms.Compose([transforms.Resize(larger), transforms.RandomCrop(recipe.size),
                                 transforms.RandomHorizontalFlip(), *normalize])  # fmt: skip
    plain = transforms.Compose([transforms.Resize(larger), transforms.CenterCrop(recipe.size), *normalize])
    options: dict[str, Any] = {"batch_size": recipe.batch_size, "num_workers": workers}
    classes = 1 + max(sample.label or 0 for sample in (*train, *validation))
    return (
        DataLoader(Images(train, varied), shuffle=True, drop_last=len(train) > recipe.batch_size, **options),
        DataLoader(Images(validation, plain), **options),
        classes,
    )


class Training:
    """A training that can be left and taken up after any whole epoch."""

    def __init__(self, model: nn.Module, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.model, self.recipe, self.out, self.device = model.to(device), recipe, out, device
        self.optimizer = torch.optim.SGD(
            model.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, recipe.decay_every, 0.1)
        self.epoch, self.best, self.stale = 0, float("inf"), 0

    @property
    def finished(self) -> bool:
        """Whether there is nothing to gain, or no epoch left."""
        return self.stale >= self.recipe.patience or self.epoch >= self.recipe.epochs

    def resume(self) -> bool:
        """Take up what is in the folder; whether there was something."""
        path = self.out / "last.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != dataclasses.asdict(self.recipe):
            raise DataError(f"{path} is of another training: give another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.best, self.stale = state["epoch"], state["best"], state["stale"]
        return True

    def run(self, train: DataLoader[Any], validation: DataLoader[Any]) -> None:
        """Train until it is finished."""
        while not self.finished:
            torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)  # the same after a break as without
            loss = self._train(train)
            checked, accuracy = self.validate(validation)
            self.schedule.step()
            self.epoch += 1
            improved = checked < self.best
            self.best, self.stale = (checked, 0) if improved else (self.best, self.stale + 1)
            self._save(improved)
            line = {"epoch": self.epoch, "loss": loss, "validation_loss": checked, "accuracy": accuracy}
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            console.print(f"epoch {self.epoch}: loss {loss:.4f}, validation {checked:.4f}, accuracy {accuracy:.1%}"
                          f"{' (best so far)' if improved else ''}")  # fmt: skip

    def _train(self, batches: DataLoader[Any]) -> float:
        self.model.train()
        total = count = 0.0
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total, count = total + float(loss.detach()) * len(images), count + len(images)
        return total / count

    @torch.no_grad()
    def validate(self, batches: DataLoader[Any]) -> tuple[float, float]:
        """The mean loss, and the share of images that come out right."""
        self.model.eval()
        total = right = count = 0.0
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            right += float((logits.argmax(1) == labels).sum())
            count += len(images)
        return total / count, right / count

    def _save(self, improved: bool) -> None:
        if improved:
            with whole(self.out / "best.pt") as path:
                torch.save(self.model.state_dict(), path)
        state = {
            "recipe": dataclasses.asdict(self.recipe), "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "epoch": self.epoch, "best": self.best, "stale": self.stale,
        }  # fmt: skip
        with whole(self.out / "last.pt") as path:
            torch.save(state, path)


def build(recipe: Recipe, classes: int, weights: Path | None) -> nn.Module:
    """The network; of a checkpoint with other classes all but the last layer is taken."""
    torch.manual_seed(recipe.seed)
    model = torchvision.models.get_model(recipe.model, weights=None, num_classes=classes)
    if weights is not None:
        state = read_checkpoint(weights)
        own = model.state_dict()
        kept = {name: value if value.shape == own[name].shape else own[name]
                for name, value in state.items() if name in own}  # fmt: skip
        fit(model, kept, weights)
    return model


def main(
    path: Annotated[Path, typer.Argument(help="The folder of CUB-200-2011, a folder of classes, or an npz file.")],
    out: Annotated[Path, typer.Option(help="The folder of checkpoints and log.")],
    weights: Annotated[Path | None, typer.Option(help="A checkpoint to start from.")] = None,
    model: Annotated[str, typer.Option(help="A classifier of torchvision.")] = "resnet50",
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 224,
    epochs: Annotated[int, typer.Option(help="At most so many.")] = 300,
    validation: Annotated[int, typer.Option(help="Images of CUB to validate with.")] = 600,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 4,
) -> None:
    """Train, or go on with a training."""
    recipe = Recipe(model=model, size=size, epochs=epochs, validation=validation, seed=seed)
    try:
        train, checked, classes = loaders(path, recipe, workers)
        out.mkdir(parents=True, exist_ok=True)
        training = Training(build(recipe, classes, weights), recipe, out, torch.device(device))
        if training.resume():
            console.print(f"going on after epoch {training.epoch}")
        training.run(train, checked)
    except FxlrpError as error:
        console.print(f"[red]error: {error}[/red]", soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(f"least validation loss {training.best:.4f}: {out / 'best.pt'}")


if __name__ == "__main__":
    typer.run(main)
