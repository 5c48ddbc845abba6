"""Baselines: what an image shows where a pixel is missing."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fxlrp.common.errors import InputError

BaselineName = Literal["black", "mean", "blurred"]
BASELINES: tuple[str, ...] = get_args(BaselineName)

_SIGMA = 10.0
"""Standard deviation of the blur in pixels, for an image of 224 pixels; in proportion for others."""


def baseline_images(images: Tensor, baseline: str | float | Tensor = "black") -> Tensor:
    """What stands where a pixel is missing, in the shape of ``images``.

    Raises:
        InputError: there is no such baseline, or it does not fit.
    """
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(images).expand_as(images)
        except RuntimeError as error:
            shapes = f"{tuple(baseline.shape)} does not broadcast to {tuple(images.shape)}"
            raise InputError(f"the baseline does not fit the images: {shapes}") from error
    if isinstance(baseline, int | float) and not isinstance(baseline, bool):
        return torch.full_like(images, float(baseline))
    if baseline == "black":
        return torch.zeros_like(images)
    if baseline == "mean":
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
    if baseline == "blurred":
        return blurred(images, _SIGMA * min(images.shape[-2:]) / 224)
    raise InputError(f"baseline={baseline!r}: choose among {', '.join(map(repr, BASELINES))}, a number or a tensor")


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (batch, channels, height, width) under a Gaussian of ``sigma`` pixels; borders are mirrored.

    The Gaussian is cut off at 3σ, or at the size of the image where that is less.
    """
    height, width = images.shape[-2:]
    reach = max(1, round(3 * sigma))
    across, down = (2 * min(reach, length - 1) + 1 for length in (width, height))
    # One axis after the other: torchvision convolves with the whole kernel, which is 30 times slower.
    return gaussian_blur(gaussian_blur(images, [across, 1], [sigma, sigma]), [1, down], [sigma, sigma])
