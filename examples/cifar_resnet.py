"""Residual networks for CIFAR-10 (He et al., CVPR 2016), 6n + 2 layers, and their preprocessing.

    fxlrp explain frog.png --model python:examples.cifar_resnet:resnet56 --weights resnet56.th

Checkpoints of https://github.com/akamaster/pytorch_resnet_cifar10 fit.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

from fxlrp.images import IMAGENET_MEAN, IMAGENET_STD
from fxlrp.models import LoadedModel

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PREPROCESS = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


class Block(nn.Module):
    """Two convolutions and a skip without parameters: where the width grows, every second pixel and zero channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.grows = (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grows, self.grows))
        return self.relu2(out + x)


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        stages, inputs = [], 16
        for width in (16, 32, 64):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(Block(inputs, width, 2 if width > 16 and i == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20() -> LoadedModel:
    """20 layers."""
    return _loaded(20)


def resnet32() -> LoadedModel:
    """32 layers."""
    return _loaded(32)


def resnet44() -> LoadedModel:
    """44 layers."""
    return _loaded(44)


def resnet56() -> LoadedModel:
    """56 layers."""
    return _loaded(56)


def _loaded(depth: int) -> LoadedModel:
    return LoadedModel(CifarResNet(depth).eval(), PREPROCESS, CLASSES)
