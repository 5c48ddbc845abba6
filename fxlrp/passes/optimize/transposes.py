"""Transposes of convolutions as convolutions, for which processors have faster code and can lay weights out ahead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxlrp.common.compiling import is_compiling
from fxlrp.passes.optimize.base import OptimizerPass, WeightShapes, inserted, retarget
from fxlrp.passes.optimize.matching import arguments_of
from fxlrp.steps.convolution import convolution_transpose
from fxlrp.steps.primitives import channels_last, primitive

_CONVOLUTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_WORTH = 1.5
"""How much more arithmetic the pixel shuffle may take; what it saves is a slow kernel."""


@primitive
def flipped(weight: Tensor, groups: int) -> Tensor:
    """Weights (out, in / groups, *kernel) of a convolution as those of its transpose: (in, out / groups, *kernel)."""
    dims = list(range(2, weight.dim()))
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return parts.flip(dims).contiguous(memory_format=_format(weight))


@primitive
def phases(weight: Tensor, stride: int) -> Tensor:
    """Weights (out, in, k, k) of a strided convolution as those that give each phase of its transpose.

    Shape (in · stride², out, j, j), j = ⌈k / stride⌉: what a pixel at an offset from a multiple of the
    stride receives comes from every stride-th weight alone (Shi et al., CVPR 2016).
    """
    out, channels, kernel, _ = weight.shape
    taps = -(-kernel // stride)
    missing = taps * stride - kernel
    full = F.pad(weight, (0, missing, 0, missing)).reshape(out, channels, taps, stride, taps, stride)
    apart = full.flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    return apart.reshape(channels * stride**2, out, taps, taps).contiguous(memory_format=_format(weight))


def _format(weight: Tensor) -> torch.memory_format:
    """That of the weights, because a convolution's result is laid out as they are."""
    return torch.channels_last if channels_last(weight) else torch.contiguous_format


@primitive(fresh=True)
def interleaved(parts: Tensor, x: Tensor, stride: int, padding: int) -> Tensor:
    """The phases of a transpose put together, in the shape of ``x``."""
    shuffled = F.pixel_shuffle(parts, stride)
    height, width = x.shape[2:]
    if shuffled.shape[2] < padding + height or shuffled.shape[3] < padding + width:  # rows that no window reached
        return F.pad(
            shuffled,
            (-padding, padding + width - shuffled.shape[3], -padding, padding + height - shuffled.shape[2]),
        )
    return shuffled[:, :, padding : padding + height, padding : padding + width]


@primitive(fresh=True)
def spaced(parts: Tensor, x: Tensor, stride: list[int]) -> Tensor:
    """Values at the multiples of the stride and zeros between, in the shape of ``x``."""
    several = not is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(parts)
    # Where it can, in the memory format of x as well.
    whole = parts.new_zeros(*parts.shape[:2], *x.shape[2:]) if several else torch.zeros_like(x, dtype=parts.dtype)
    places = slice(None), slice(None), *(slice(None, None, step) for step in stride)
    whole[places] = parts
    return whole


class TransposesAsConvolutions(OptimizerPass):
    """Writes the transpose of a convolution as a convolution with its weights turned round.

    With a stride of one that is all. A kernel of one place is put at the multiples of the stride
    behind it. Where the kernel is hardly larger than its stride, as in stems and patch embeddings, the
    transpose is a convolution for each phase of the stride, and a shuffle of pixels. The others stay.
    The weights depend on those of the model alone: ``FoldWeights`` keeps them.

    Before::

        share = convolution_transpose(s, weight, x, [1, 1], [1, 1], [1, 1], 1)

    After::

        turned = flipped(weight, 1)
        share = conv2d(s, turned, None, [1, 1], [1, 1], [1, 1], 1)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        transposes = [node for node in module.graph.nodes if node.target is convolution_transpose]
        shapes = WeightShapes(module)
        for node in transposes:
            a = arguments_of(node)
            shape = shapes.get(a["weight"])
            if shape is None:
                continue
            if all(step == 1 for step in a["stride"]):
                self._flip(node, a, shape)
            elif shape[2:].numel() == 1 and not any(a["padding"]):
                self._space(node, a)
            elif len(shape) == 4 and a["groups"] == 1:
                self._shuffle(node, a, shape)
        return module

    def _flip(self, node: fx.Node, a: dict[str, Any], shape: torch.Size) -> None:
        padding = [d * (k - 1) - p for k, d, p in zip(shape[2:], a["dilation"], a["padding"], strict=True)]
        if min(padding) >= 0:
            retarget(node, *self._turned(node, a, padding))

    def _space(self, node: fx.Node, a: dict[str, Any]) -> None:
        target, *args = self._turned(node, a, [0] * len(a["stride"]))
        parts = inserted(node, target, *args, name=f"{node.name}_parts")
        retarget(node, spaced, parts, a["x"], a["stride"])

    def _turned(self, node: fx.Node, a: dict[str, Any], padding: list[int]) -> tuple[Any, ...]:
        """The convolution with flipped weights: function and arguments."""
        weight = inserted(node, flipped, a["weight"], a["groups"], name=f"{node.name}_weight")
        dims = len(padding)
        return _CONVOLUTION[dims], a["s"], weight, None, [1] * dims, padding, a["dilation"], a["groups"]

    def _shuffle(self, node: fx.Node, a: dict[str, Any], shape: torch.Size) -> None:
        kernel, stride, padding = shape[2], a["stride"][0], a["padding"][0]
        square = len({shape[2], shape[3]}) == len(set(a["stride"])) == len(set(a["padding"])) == 1
        taps = -(-kernel // stride)
        if not square or any(d != 1 for d in a["dilation"]) or (taps * stride) ** 2 > _WORTH * kernel**2:
            return
        weight = inserted(node, phases, a["weight"], stride, name=f"{node.name}_weight")
        parts = inserted(
            node, F.conv2d, a["s"], weight, None, [1, 1], [taps - 1] * 2, [1, 1], 1, name=f"{node.name}_phases"
        )
        retarget(node, interleaved, parts, a["x"], stride, padding)
