"""Stacks of convolutions: of chosen forms, and random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from optimize_nets import seeded_weights
from torch import nn

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "none": nn.Identity}


@dataclass
class LayerPlan:
    """A convolution, one entry per axis; ``groups`` 0: depthwise."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = True
    transposed: bool = False
    norm: bool = False
    activation: str = "relu"


@dataclass
class StackPlan:
    """Convolutions over images (batch, 3, *size), one after the other."""

    size: tuple[int, ...]
    layers: list[LayerPlan]
    batch: int = 2
    zeros: bool = False


class Stack(nn.Module):
    """A stack of convolutions after a :class:`StackPlan`, and a linear head; what would leave no pixel is left out."""

    def __init__(self, plan):
        super().__init__()
        layers, width, size = [], 3, plan.size
        for layer in plan.layers:
            size, convolution, out = self._made(layer, width, size)
            if convolution is None:
                continue
            layers += [convolution, _NORM[len(size)](out)] if layer.norm else [convolution]
            layers.append(_ACTIVATIONS[layer.activation]())
            width = out
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 5)

    @staticmethod
    def _made(layer, width, size):
        dims, groups = len(size), layer.groups or width
        out = {0: 2 * width, 1: 6}.get(layer.groups, 4)
        if width % groups or out % groups:
            groups = 1
        if layer.transposed:
            kernel = layer.kernel
            padding = tuple(min(p, d * (k - 1)) for p, k, d in zip(layer.padding, kernel, layer.dilation, strict=True))
            after = tuple(
                (n - 1) * s - 2 * p + d * (k - 1) + 1
                for n, k, s, p, d in zip(size, kernel, layer.stride, padding, layer.dilation, strict=True)
            )
            if max(after) > 24 or min(after) < 1:
                return size, None, width
            made = _TRANSPOSED[dims](
                width, out, kernel, layer.stride, padding, 0, groups, layer.bias, layer.dilation
            )
            return after, made, out
        after = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
        )
        if min(after) < 1:
            return size, None, width
        made = _CONVOLUTION[dims](
            width, out, layer.kernel, layer.stride, layer.padding, layer.dilation, groups, layer.bias
        )
        return after, made, out

    def forward(self, x):
        return self.head(self.layers(x).flatten(2).mean(2))


def stack(plan, dtype=torch.float64, seed=0):
    """The stack of a plan and images for it."""
    torch.manual_seed(seed)
    model = seeded_weights(Stack(plan)).to(dtype)
    x = torch.randn(plan.batch, 3, *plan.size, dtype=dtype)
    if plan.zeros:
        x[-1] = 0
    return model, x


ONE, THREE = LayerPlan((1, 1), (1, 1), (0, 0), (1, 1)), LayerPlan((3, 3), (1, 1), (1, 1), (1, 1))

STACKS = {
    "kernels of one place at a stride": StackPlan((9, 11), [replace(ONE, stride=(3, 2))] * 2),
    "of one place, padded": StackPlan((9, 11), [replace(ONE, stride=(2, 2), padding=(1, 1))]),
    "a patch embedding": StackPlan((16, 16), [LayerPlan((4, 4), (4, 4), (0, 0), (1, 1))]),
    "patches with a rest": StackPlan((15, 18), [LayerPlan((4, 4), (4, 4), (0, 0), (1, 1))]),
    "a stride beyond the kernel": StackPlan((13, 14), [LayerPlan((5, 5), (6, 6), (1, 1), (1, 1))]),
    "a stem": StackPlan((17, 20), [LayerPlan((7, 7), (2, 2), (3, 3), (1, 1))] * 2),
    "neither square": StackPlan((11, 9), [LayerPlan((1, 5), (2, 4), (0, 2), (1, 1))]),
    "a square kernel at two strides": StackPlan((12, 12), [LayerPlan((4, 4), (4, 2), (0, 1), (1, 1))]),
    "padding of whole windows": StackPlan((7, 7), [replace(THREE, padding=(4, 3))] * 2),
    "strided padding of whole windows": StackPlan((8, 8), [LayerPlan((4, 4), (4, 4), (5, 5), (1, 1))]),
    "dilated": StackPlan((13, 13), [LayerPlan((3, 3), stride, (2, 2), (2, 2)) for stride in ((1, 1), (2, 2))]),
    "depthwise": StackPlan((9, 9), [replace(THREE, groups=0)] * 2),
    "depthwise at a stride": StackPlan((9, 9), [replace(THREE, stride=(2, 2), groups=0)] * 2),
    "groups": StackPlan((9, 9), [THREE, replace(THREE, groups=2)]),
    "transposed": StackPlan((6, 7), [LayerPlan((3, 2), (2, 1), (1, 0), (1, 1), transposed=True)] * 2),
    "transposed in groups": StackPlan((6, 6), [ONE, LayerPlan((4, 4), (2, 2), (1, 1), (1, 1), 2, transposed=True)]),
    "rows": StackPlan((17,), [LayerPlan((5,), (1,), (2,), (1,)), LayerPlan((3,), (3,), (0,), (1,), norm=True)]),
    "rows of one place": StackPlan((17,), [LayerPlan((1,), (4,), (0,), (1,))] * 2),
    "volumes": StackPlan((5, 6, 7), [
        LayerPlan((3, 2, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1)), LayerPlan((1, 1, 1), (2, 3, 1), (0, 0, 0), (1, 1, 1))
    ]),
    "strided volumes": StackPlan((8, 8, 8), [LayerPlan((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))]),
    "no bias": StackPlan((9, 9), [replace(THREE, bias=False, norm=True, activation="none")] * 2),
}  # fmt: skip
"""Stacks whose convolutions have every form that matters to a pass."""


@st.composite
def stack_plans(draw):
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    square = draw(st.booleans())

    def axes(low, high):
        if square:
            return (draw(st.integers(low, high)),) * dims
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    def layer(transposed):
        kernel, dilation = axes(1, 7 if dims < 3 else 4), draw(st.sampled_from([(1,) * dims, (1,) * dims, (2,) * dims]))
        larger = draw(st.sampled_from([0, 0, 0, 2]))  # padding that whole windows lie in
        return LayerPlan(
            kernel, axes(1, 4), tuple(p + larger * k for p, k in zip(axes(0, 3), kernel, strict=True)), dilation,
            groups=draw(st.sampled_from([1, 1, 2, 0])), bias=draw(st.booleans()), transposed=transposed,
            norm=draw(st.booleans()), activation=draw(st.sampled_from(sorted(_ACTIVATIONS))),
        )  # fmt: skip

    count = draw(st.integers(1, 3))
    return StackPlan(
        axes(7, 13 if dims < 3 else 8), [layer(transposed=draw(st.integers(0, 3)) == 0) for _ in range(count)],
        batch=draw(st.integers(1, 3)), zeros=draw(st.booleans()),
    )  # fmt: skip
