"""The models that are timed, by name, on random weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from benchmarks.subjects import noise, usable

MODELS = ("resnet50", "vgg16_bn", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
_CIFAR = re.compile(r"cifar_resnet(\d+)")


def build(name: str) -> nn.Module:
    """A classifier of torchvision, or ``cifar_resnetN`` with N layers; weights always the same, nothing to train."""
    torch.manual_seed(0)
    match = _CIFAR.fullmatch(name)
    if match:
        model: nn.Module = CifarResNet(int(match[1]))
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    side = native_size(name)
    return usable(model, 3, side, side).requires_grad_(False)


def images_for(batch: int, size: int) -> Tensor:
    """Noise, float32."""
    return noise(3, size, size, batch=batch)


def native_size(name: str) -> int:
    """Height and width of the pictures that a model is made for."""
    return 32 if _CIFAR.fullmatch(name) else 224


def known(name: str) -> bool:
    """Whether ``build`` has such a model."""
    match = _CIFAR.fullmatch(name)
    if match:
        return (int(match[1]) - 2) % 6 == 0
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


class CifarResNet(nn.Module):
    """The residual networks for 32 × 32 pictures of He et al. (CVPR 2016), 6n + 2 layers.

    Made of torchvision's blocks, so that other packages know them; where the width grows the skip is a
    projection.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth}: these networks have 6n + 2 layers")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        width = 16
        for wider in (16, 32, 64):
            for index in range(blocks):
                stride = 2 if wider != width else 1
                projection = _projection(width, wider) if index == 0 and stride == 2 else None
                layers.append(BasicBlock(width, wider, stride, projection))
                width = wider
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        scores: Tensor = self.fc(self.avgpool(self.layers(x)).flatten(1))
        return scores


def _projection(width: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, wider, 1, stride=2, bias=False), nn.BatchNorm2d(wider))
