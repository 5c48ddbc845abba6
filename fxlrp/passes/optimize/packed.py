"""Weights laid out ahead for the processor's convolutions: oneDNN else does so at every call.

For the late layers of a ResNet, which have many weights and few places, that is half of the time of a
convolution. The packed form is opaque, holds the same numbers and gives the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxlrp.common.compiling import is_compiling
from fxlrp.passes.optimize.base import OptimizerPass, WeightShapes, emitted, inserted, retarget
from fxlrp.passes.optimize.matching import arguments_of
from fxlrp.steps.primitives import channels_last, plain, primitive

aten = torch.ops.aten
_C: Any = torch._C  # what it holds is not typed throughout
_NN: Any = torch._C._nn

_LARGE = 1 << 15
"""Elements from which on weights are worth packing."""


def can_pack(inputs: Sequence[Tensor]) -> bool:
    """Whether a program for these inputs may run on packed weights: images in channels-last, on a CPU with oneDNN."""
    if is_compiling() or not (_C._has_mkldnn and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(_NN, "mkldnn_reorder_conv2d_weight"):
        return False
    return all(
        x.device.type == "cpu" and x.dtype == torch.float32 and plain(x) and channels_last(x) for x in inputs
    )


class Packed:
    """The weights of a convolution, packed for the shape that it is given over and over.

    In which order oneDNN reads weights depends on the shape of the input. They are packed at the second
    call in a row with one, so that a single explanation, or one shape after another, costs nothing more.

    Args:
        weight: (out, in / groups, height, width).
        ours: whether nobody else holds them: once packed they are then kept in that form alone.
    """

    def __init__(self, weight: Tensor, ours: bool) -> None:
        self._ours = ours
        self._state: tuple[Tensor | None, Tensor | None, Any] = (weight, None, None)  # dense, packed, shape

    def convolve(self, x: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        """The convolution of ``x``; ``how``: stride, padding, dilation and groups."""
        dense, packed, shape = self._state  # read and written as one, for several threads may
        if packed is None or shape != x.shape:
            if dense is None:
                assert packed is not None
                dense = packed.to_dense().contiguous(memory_format=torch.channels_last)
            packed = _laid_out(dense, x, how) if shape == x.shape else None
            self._state = (None if self._ours and packed is not None else dense), packed, x.shape
        if packed is None:
            assert dense is not None
            return F.conv2d(x, dense, bias, *how)
        return _applied(x, packed, bias, how)


def _applied(x: Tensor, packed: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
    """The convolution; a function of autograd, which is slow to call, only where ``torch.vmap`` must be told."""
    if plain(x):
        return _convolve(x, packed, bias, how)
    result: Tensor = _Convolve.apply(x, packed, bias, how)
    return result


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
    stride, padding, *rest = how
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, padding, stride, *rest, "none", [], "")
    return result


class _Convolve(torch.autograd.Function):
    """The convolution by packed weights, which torch.vmap does not know: its rows are more of a batch."""

    @staticmethod
    def forward(x: Tensor, packed: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        return _convolve(x, packed, bias, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing is differentiated here."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, packed: Tensor, bias: Any, how: Any) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0], 0)
        result = _applied(rows.flatten(0, 1), packed, bias, how)
        return result.reshape(*rows.shape[:2], *result.shape[1:]), 0


def _laid_out(weight: Tensor, x: Tensor, how: tuple[Any, ...]) -> Tensor:
    stride, padding, dilation, groups = how
    packed: Tensor = _NN.mkldnn_reorder_conv2d_weight(
        aten.to_mkldnn(weight.detach()), padding, stride, dilation, groups, list(x.shape)
    )
    return packed


@primitive
def packed(weight: Tensor, ours: bool) -> Packed:
    """Weights that can be packed."""
    return Packed(weight, ours)


@primitive(fresh=True)
def packed_convolution(
    x: Tensor, weight: Packed, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:
    """A convolution by packed weights."""
    return weight.convolve(x, bias, (stride, padding, dilation, groups))


@primitive(fresh=True)
def same_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    groups: int, laid_out: Packed,
) -> Tensor:
    """A convolution of the model: by packed weights where torch would call oneDNN in the same way, to the bit."""
    how = stride, padding, dilation, groups
    if channels_last(x):
        backend = _C._select_conv_backend(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
        if backend == _C._ConvBackend.Mkldnn:
            return laid_out.convolve(x, bias, how)
    return F.conv2d(x, weight, bias, *how)


class PackWeights(OptimizerPass):
    """Lets convolutions with large weights read them packed.

    Before::

        z = conv2d(x, weight, None, [1, 1], [1, 1], [1, 1], 1)

    After::

        laid_out = packed(weight, True)
        z = packed_convolution(x, laid_out, None, [1, 1], [1, 1], [1, 1], 1)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        shapes = WeightShapes(module)
        for node in list(module.graph.nodes):
            if node.target not in (F.conv2d, aten.conv2d.default):
                continue
            a = arguments_of(node)
            shape = shapes.get(a["weight"])
            if shape is None or shape.numel() < _LARGE or isinstance(a["padding"], str):
                continue
            how = (*[_pair(a[name]) for name in ("stride", "padding", "dilation")], a["groups"])
            ours = emitted(node)
            laid_out = inserted(node, packed, a["weight"], ours, name=f"{node.name}_packed")
            if ours:
                retarget(node, packed_convolution, a["input"], laid_out, a["bias"], *how)
            else:
                retarget(node, same_convolution, a["input"], a["weight"], a["bias"], *how, laid_out)
        return module


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
