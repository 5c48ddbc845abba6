"""How a model's input is made of a picture: as its configuration says, as the user says, or a guess that is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torchvision import transforms

from fxlrp.common.errors import InputError, WeightsError
from fxlrp.loading.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess


@dataclass(frozen=True)
class InputFormat:
    """Resize the short side, crop the middle, make it grey if need be, normalise.

    Attributes:
        size: height and width of the input, in pixels.
        resize: what the short side becomes before; ``None``: ``size``.
        mean, std: of each channel, for values between 0 and 1.
        channels: 1 or 3.
        interpolation: how pictures are resized, ``"bilinear"`` or ``"bicubic"``.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    interpolation: str = "bilinear"

    def preprocess(self) -> Preprocess:
        """The function from a picture to the input."""
        mode = transforms.InterpolationMode(self.interpolation)
        steps = [transforms.Resize(self.resize or min(self.size), mode), transforms.CenterCrop(self.size)]
        steps += [transforms.Grayscale()] if self.channels == 1 else []
        composed: Preprocess = transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        )
        return composed

    def __str__(self) -> str:
        height, width = self.size
        grey = "grey, " if self.channels == 1 else ""
        return (
            f"short side {self.resize or min(self.size)}, middle {height} × {width}, {grey}"
            f"mean {_numbers(self.mean)}, standard deviation {_numbers(self.std)}"
        )


IMAGENET = InputFormat(resize=256)


@dataclass(frozen=True)
class Asked:
    """What the user says of the preprocessing; what is ``None`` is left to the model's own configuration.

    Attributes:
        size: height and width; the short side is resized to it.
        mean, std: of each channel, or one number for all.
        channels: 1 or 3.
        classes: a file with the names of the classes: one per line, or JSON (a list, or names by number).
    """

    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int | None = None
    classes: Path | None = None

    @property
    def preprocessing(self) -> bool:
        """Whether anything is said of how the input is made."""
        return any(value is not None for value in (self.size, self.mean, self.std, self.channels))

    def applied(self, own: InputFormat) -> InputFormat:
        """The format of a model with this in place of what it says.

        Raises:
            InputError: the numbers of channels, means and standard deviations differ, or a number cannot be one.
        """
        channels = own.channels if self.channels is None else self.channels
        if channels not in (1, 3):
            raise InputError(f"--channels {channels}: pictures have 1 or 3; give other inputs as arrays, .npy files")
        found = replace(own, channels=channels)
        if self.size is not None:
            if self.size < 1:
                raise InputError(f"--size {self.size}: give a number of pixels")
            found = replace(found, size=(self.size, self.size), resize=None)
        numbers: dict[str, tuple[float, ...]] = {}
        values = {"mean": (self.mean, own.mean), "std": (self.std, own.std)}
        for name, (asked, usual) in values.items():
            each = tuple(usual if asked is None else asked)
            if len(each) != channels and len(set(each)) == 1:
                each = each[:1] * channels
            if len(each) != channels and asked is None:  # of the colours of another number of channels
                each = ((0.0,) if name == "mean" else (1.0,)) * channels
            if len(each) != channels:
                raise InputError(f"--{name} has {len(each)} numbers, and the model's input {channels} channels")
            if name == "std" and any(value <= 0 for value in each):
                raise InputError("--std: standard deviations are above zero")
            numbers[name] = each
        return replace(found, mean=numbers["mean"], std=numbers["std"])


def of_timm(config: Mapping[str, Any]) -> InputFormat:
    """What timm's data configuration says."""
    channels, height, width = config["input_size"]
    return InputFormat((height, width), int(min(height, width) / config["crop_pct"]), tuple(config["mean"]),
                       tuple(config["std"]), channels, str(config.get("interpolation") or "bicubic"))  # fmt: skip


def of_torchvision(preset: Any) -> InputFormat:
    """What the transforms of torchvision's weights say."""
    size = preset.crop_size[0]
    return InputFormat((size, size), preset.resize_size[0], tuple(preset.mean), tuple(preset.std),
                       interpolation=preset.interpolation.value)  # fmt: skip


def of_transforms(preprocess: Any) -> InputFormat | None:
    """What torchvision's transforms do, if they are those of a format in its order; else ``None``."""
    found: dict[str, Any] = {"mean": None, "std": None}
    for step in preprocess.transforms if isinstance(preprocess, transforms.Compose) else ():
        if isinstance(step, transforms.Resize) and isinstance(step.size, int) and "resize" not in found:
            found |= {"resize": step.size, "interpolation": step.interpolation.value}
        elif isinstance(step, transforms.CenterCrop) and "resize" in found:
            found["size"] = tuple(step.size)
        elif isinstance(step, transforms.Grayscale) and step.num_output_channels == 1:
            found["channels"] = 1
        elif isinstance(step, transforms.Normalize):
            found |= {"mean": tuple(map(float, step.mean)), "std": tuple(map(float, step.std))}
        elif type(step).__name__ not in ("ToTensor", "MaybeToTensor"):
            return None
    channels = found.get("channels", 3)
    if "size" not in found or found.get("interpolation") not in ("bilinear", "bicubic"):
        return None
    found["mean"] = found["mean"] or (0.0,) * channels
    found["std"] = found["std"] or (1.0,) * channels
    return InputFormat(**found)


def of_hyperparameters(values: Mapping[str, Any]) -> tuple[InputFormat | None, list[str] | None]:
    """What hyperparameters in a checkpoint, as Lightning keeps them, say of the input; and names of classes.

    Known are ``image_size``, ``img_size``, ``input_size`` or ``size``; ``mean``, ``std``; ``in_channels``,
    ``in_chans`` or ``channels``; ``classes`` or ``class_names``.
    """

    def first(*names: str) -> Any:
        return next((values[name] for name in names if values.get(name) is not None), None)

    size, mean, std = first("image_size", "img_size", "input_size", "size"), first("mean"), first("std")
    channels, names = first("in_channels", "in_chans", "channels"), first("classes", "class_names")
    classes = [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else None
    if size is None and mean is None and std is None:
        return None, classes
    size = size[-1] if isinstance(size, Sequence) and size else size
    asked = Asked(size if isinstance(size, int) else None, _tuple(mean), _tuple(std), _channels(channels))
    return asked.applied(IMAGENET), classes


def guessed(model: nn.Module, shape: Sequence[int | None] = (None, None, None)) -> InputFormat:
    """What is taken where nothing is said: ImageNet's, or for a model of one channel values between 0 and 1.

    Args:
        model: the model, whose first convolution tells the channels.
        shape: channels, height and width of an input, where they are known.
    """
    channels, height, width = shape
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    usual = IMAGENET if height is None or width is None else replace(IMAGENET, size=(height, width), resize=None)
    if channels is None and first is not None:
        channels = 1 if first.in_channels == 1 else None
    return Asked(channels=channels).applied(usual)


def read_classes(path: Path) -> list[str]:
    """The names of classes in a file: one per line, a JSON list, or a JSON dict of names by number.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"--classes {path} cannot be read: {error}") from error
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise WeightsError(f"--classes {path} is no JSON: {error}") from error
        if isinstance(content, dict) and all(key.isdecimal() for key in content):
            content = [content[key] for key in sorted(content, key=int)]
        if not isinstance(content, list):
            raise WeightsError(f"--classes {path}: a list of names, or names by number")
        # torchvision's and Keras' files have pairs of an identifier and a name.
        names = [str(name[-1] if isinstance(name, list) and name else name) for name in content]
    if not names:
        raise WeightsError(f"--classes {path} names no class")
    return names


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _tuple(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)


def _channels(value: Any) -> int | None:
    return value if value in (1, 3) else None
