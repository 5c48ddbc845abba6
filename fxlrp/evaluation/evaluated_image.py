"""An image as it is evaluated: between 0 and 1, with the way from there to what the model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.evaluation.data import Sample
from fxlrp.loading.images import Preprocess, to_input


class Normalization:
    """The part of a model's preprocessing that leaves an image's form alone: from [0, 1] to what the model takes.

    It is not looked up but measured, by preprocessing a black and a white picture, so that any preprocessing
    will do that scales and shifts each value on its own.

    Attributes:
        black: (channels, height, width), what a black picture becomes.
        span: (channels, height, width), what a white one has more than that.
    """

    def __init__(self, preprocess: Preprocess, size: tuple[int, int]) -> None:
        self.black = to_input(Image.new("RGB", size, "black"), preprocess)
        self.span = to_input(Image.new("RGB", size, "white"), preprocess) - self.black
        if bool((self.span == 0).any()):
            raise InputError("the preprocessing makes black and white the same somewhere, which cannot be undone")

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) in [0, 1] to what the model takes."""
        return images * self.span.to(images) + self.black.to(images)

    def undo(self, value: Tensor) -> Tensor:
        """What the model takes to [0, 1]; resizing may overshoot, which is cut off."""
        return ((value - self.black.to(value)) / self.span.to(value)).clamp(0, 1)


@dataclass(frozen=True)
class EvaluatedImage:
    """An image as it is evaluated.

    Attributes:
        sample: which one it is.
        image: (1, channels, height, width), between 0 and 1.
        normalize: from there to what the model takes.
    """

    sample: Sample
    image: Tensor
    normalize: Normalization

    @property
    def input(self) -> Tensor:
        """What the model takes: (1, channels, height, width)."""
        return self.normalize(self.image)


def load_image(sample: Sample, preprocess: Preprocess, device: torch.device | str = "cpu") -> EvaluatedImage:
    """Read and preprocess an image.

    Raises:
        ImageError: it cannot be read.
        InputError: the preprocessing fails, or cannot be undone.
    """
    picture = sample.read()
    value = to_input(picture, preprocess)
    normalize = Normalization(preprocess, picture.size)
    return EvaluatedImage(sample, normalize.undo(value)[None].to(device), normalize)
