"""Networks that the tests explain."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


def calibrated(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    """Random weights made usable: batch norms measured on ``batch``, no head of zeros; eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.01)
    return model.eval()


class CifarBlock(nn.Module):
    """A basic block with the parameter-free shortcut of He et al. 2016 (option A)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.padded = stride != 1 or inputs != planes
        self.extra = planes // 4

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.padded:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra), "constant", 0)
        out += shortcut
        return F.relu(out)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016 with 6n + 2 layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for stage, (planes, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
            blocks = []
            for i in range(n):
                blocks.append(CifarBlock(width, planes, stride if i == 0 else 1))
                width = planes
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


def trained_cifar_resnet(shared, depth: int) -> nn.Module:
    """A trained CIFAR-10 ResNet from the optional data folder."""
    (path,) = (shared / "models" / "cifar10_resnet").glob(f"resnet{depth}-*.th")
    state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    model = CifarResNet((depth - 2) // 6)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def cifar_images(shared, count: int) -> torch.Tensor:
    """Normalised CIFAR-10 test images, (count, 3, 32, 32)."""
    import numpy as np

    with np.load(shared / "images" / "cifar10_test.npz") as data:
        images = torch.tensor(data["images"][:count]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


# Random residual graphs ---------------------------------------------------------------------

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "none": nn.Identity, "relu6": nn.ReLU6}


@dataclass
class BlockPlan:
    """How a random block is built."""

    planes: int = 4
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    skip: str = "identity"  # identity, projection, padded, dense, none
    preactivation: bool = False
    activation: str = "relu"
    inplace: bool = False
    bias: bool = False
    norm: bool = True
    squeeze: bool = False
    shared: bool = False
    nested: BlockPlan | None = None


@dataclass
class NetPlan:
    """How a random network is built."""

    blocks: list[BlockPlan] = field(default_factory=list)
    stem_bias: bool = False
    pool: str = "max"  # max, average, none
    head_bias: bool = True


def activation(plan: BlockPlan) -> nn.Module:
    kind = ACTIVATIONS[plan.activation]
    return kind(inplace=plan.inplace) if plan.activation in ("relu", "silu", "relu6") else kind()


def norm(plan: BlockPlan, width: int) -> nn.Module:
    if not plan.norm:
        return nn.Identity()
    layer = nn.BatchNorm2d(width)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(width))  # negative scales as well
        layer.bias.copy_(0.3 * torch.randn(width))
        layer.running_mean.copy_(0.3 * torch.randn(width))
        layer.running_var.copy_(0.5 + torch.rand(width))
    return layer


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        s = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)), inplace=True)
        return x * torch.sigmoid(self.expand(s))


class Block(nn.Module):
    """A residual (or dense, or plain) block after a :class:`BlockPlan`."""

    def __init__(self, width: int, plan: BlockPlan) -> None:
        super().__init__()
        self.plan = plan
        planes = plan.planes
        keeps = plan.skip == "identity" and plan.stride == 1
        self.out = width if keeps else planes
        groups = plan.groups if width % plan.groups == 0 and self.out % plan.groups == 0 else 1
        if plan.preactivation:
            self.norm0, self.act0 = norm(plan, width), activation(plan)
        self.conv1 = nn.Conv2d(
            width, self.out, 3, plan.stride, plan.dilation, plan.dilation, groups=groups, bias=plan.bias
        )
        self.norm1, self.act1 = norm(plan, self.out), activation(plan)
        self.conv2 = nn.Conv2d(self.out, self.out, 3, 1, 1, bias=plan.bias)
        self.norm2, self.act2 = norm(plan, self.out), activation(plan)
        self.squeeze = Squeeze(self.out) if plan.squeeze else nn.Identity()
        self.nested = Block(self.out, plan.nested) if plan.nested else None
        inner = self.nested.out if self.nested else self.out
        if self.nested and plan.skip != "none" and inner != self.out:
            self.back = nn.Conv2d(inner, self.out, 1, bias=False)
        if plan.skip == "projection":
            self.projection = nn.Sequential(
                nn.Conv2d(width, self.out, 1, plan.stride, bias=plan.bias), norm(plan, self.out)
            )
        self.width = width
        if plan.skip == "dense":
            self.out = width + self.out
        elif plan.skip == "none" and self.nested:
            self.out = inner

    def forward(self, x):
        plan = self.plan
        h = self.act0(self.norm0(x)) if plan.preactivation else x
        if plan.preactivation and plan.inplace:
            x = h  # what an in-place activation leaves of x where there is no norm
        r = self.conv1(h)
        r = self.act1(self.norm1(r))
        r = self.norm2(self.conv2(r))
        if plan.shared:
            r = self.conv2(self.act1(r))
        r = self.squeeze(r)
        if self.nested is not None:
            r = self.nested(r)
            if hasattr(self, "back"):
                r = self.back(r)
        if plan.skip == "none":
            return self.act2(r)
        if plan.skip == "dense":
            skip = F.avg_pool2d(x, plan.stride, ceil_mode=True) if plan.stride > 1 else x
            return torch.cat([skip[:, :, : r.shape[2], : r.shape[3]], r], 1)
        if plan.skip == "projection":
            skip = self.projection(x)
        elif plan.skip == "padded" or plan.stride > 1:
            extra = r.shape[1] - self.width
            skip = F.pad(x[:, :, :: plan.stride, :: plan.stride], (0, 0, 0, 0, 0, extra))
        else:
            skip = x
        if plan.inplace:
            r += skip
        else:
            r = r + skip
        return r if plan.preactivation else self.act2(r)


class RandomNet(nn.Module):
    """A stem, random blocks, pooling and a linear head."""

    def __init__(self, plan: NetPlan) -> None:
        super().__init__()
        self.plan = plan
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=plan.stem_bias)
        width, blocks = 4, []
        for block in plan.blocks:
            blocks.append(Block(width, block))
            width = blocks[-1].out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 5, bias=plan.head_bias)

    def forward(self, x):
        x = self.stem(x)
        if self.plan.pool == "max":
            x = F.max_pool2d(F.relu(x), 3, 2, 1)
        elif self.plan.pool == "average":
            x = F.avg_pool2d(x, 2)
        return self.head(self.blocks(x).mean((2, 3)))


EVERY_SKIP = NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2, squeeze=True), BlockPlan(skip="dense")])
"""An identity, a projection and a dense block."""


def images_with_an_empty_one():
    """Images for a ``RandomNet`` in float64: (3, 3, 12, 12), of which the last is zeros."""
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    x[2] = 0
    return x
