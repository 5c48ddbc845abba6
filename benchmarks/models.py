"""The models that are timed, by name, on random weights that are worth explaining; and the noise they are given."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import list_models
from torchvision.models.resnet import BasicBlock

MODELS = ("resnet50", "vgg16_bn", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
TRAINED = "efficientnet_lite0"
_CIFAR = re.compile(r"cifar_resnet(\d+)")


def build(name: str) -> nn.Module:
    """A classifier of torchvision, or ``cifar_resnetN`` with N layers; weights always the same, nothing to train.

    ``efficientnet_lite0`` alone has its trained weights.
    """
    if name == TRAINED:
        from examples.efficientnet_lite0 import load

        return load().model.requires_grad_(False)
    torch.manual_seed(0)
    match, size = _CIFAR.fullmatch(name), native_size(name)
    model = CifarResNet(int(match[1])) if match else torchvision.models.get_model(name, weights=None)
    return usable(model, 3, size, size).requires_grad_(False)


def native_size(name: str) -> int:
    """Height and width of the images that a model is made for."""
    return 32 if _CIFAR.fullmatch(name) else 224


def is_model(name: str) -> bool:
    """Whether ``build`` has such a model."""
    match = _CIFAR.fullmatch(name)
    return int(match[1]) % 6 == 2 if match else name in [TRAINED, *list_models(module=torchvision.models)]


def noise(*shape: int, seed: int = 1, batch: int = 2) -> Tensor:
    """(batch, *shape), float32, always the same."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def usable(model: nn.Module, *shape: int, run: Callable[[], Any] | None = None) -> nn.Module:
    """Random weights made fit to be explained: nothing silent, batch norms measured on noise; eval mode.

    ``run`` runs the model, where its input is not noise of this ``shape``.
    """
    model.eval()
    with torch.no_grad():
        # Heads, tokens and residual branches that start at zero would leave nothing to propagate through.
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and parameter.is_floating_point() and not parameter.any():
                # One dimension: the scale of a norm or of a branch.
                parameter.normal_(std=0.01) if parameter.dim() > 1 else parameter.fill_(1)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.train().momentum = None  # the plain average over the batches
        for seed in (2, 3) if norms else ():
            run() if run else model(noise(*shape, seed=seed, batch=4))
    return model.eval()


class CifarResNet(nn.Module):
    """A residual network for 32 × 32 images of He et al. (CVPR 2016), 6n + 2 layers.

    Made of torchvision's blocks, so that other packages know them; where the width grows the skip is a projection.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers, width = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
        for wider in [width for width in (16, 32, 64) for _ in range(depth // 6)]:
            grows = wider != width
            skip = nn.Sequential(nn.Conv2d(width, wider, 1, 2, bias=False), nn.BatchNorm2d(wider)) if grows else None
            layers.append(BasicBlock(width, wider, wider // width, skip))
            width = wider
        self.layers, self.fc = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).flatten(1))  # no module: Captum has no rule for nn.Flatten
