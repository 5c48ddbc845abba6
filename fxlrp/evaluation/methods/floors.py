"""Floors: what a map scores that knows nothing of the model."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.evaluation.methods.base import Attribution, Explain


def noise(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, seed: int = 0) -> Explain:
    """Noise, the same for the same image."""

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        maps = []
        for image in inputs:
            content = zlib.crc32(image.detach().cpu().contiguous().numpy().tobytes(), seed & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(content)
            maps.append(torch.rand(image.shape[-2:], generator=generator))
        return Attribution(torch.stack(maps).to(inputs))

    return explain


def edges(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """The strength of edges, by Sobel's operator: what a map shows that knows the image and not the model."""
    ramp = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        grey = F.pad(inputs.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across, down = F.conv2d(grey, torch.stack([ramp, ramp.T])[:, None].to(grey)).unbind(1)
        return Attribution(torch.hypot(across, down))

    return explain
