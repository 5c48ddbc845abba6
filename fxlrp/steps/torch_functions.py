"""What is known of the functions, methods and attributes of torch that programs call, one entry per function.

The steps of fxlrp declare the same with :func:`~fxlrp.steps.declaration.primitive`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.steps.declaration import InPlace, declare, primitive
from fxlrp.steps.memory import takes_broadcast, writable

aten = torch.ops.aten


@primitive(reads=True)
def multiply_into(target: Tensor, factor: Tensor) -> Tensor:
    """``target · factor``, into ``target``."""
    return target.mul_(factor) if takes_broadcast(target, factor) else target * factor


@primitive(reads=True)
def add_into(target: Tensor, other: Tensor) -> Tensor:
    """``target + other``, into ``target``."""
    return target.add_(other) if takes_broadcast(target, other) else target + other


@primitive(reads=True)
def subtract_into(target: Tensor, other: Tensor) -> Tensor:
    """``target − other``, into ``target``."""
    return target.sub_(other) if takes_broadcast(target, other) else target - other


def activation_into(name: str) -> Callable[..., Tensor]:
    """The activation of ATen of this name, into its operand; autograd needs that, and gets a new tensor."""
    new, into = getattr(torch.ops.aten, name).default, getattr(torch.ops.aten, f"{name}_").default

    @primitive(reads=True)
    def activate(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        activated: Tensor = (into if writable(x) else new)(x, *args, **kwargs)
        return activated

    activate.__name__ = activate.__qualname__ = f"{name}_into"
    return activate


ACTIVATIONS = ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "hardtanh", "gelu", "elu", "leaky_relu")

# Arithmetic: of both of Python's operators and torch's functions.
_MULTIPLY = InPlace(multiply_into, ((1, 0), (0, 1)))
_ADD = InPlace(add_into, ((0, 1), (1, 0)))
declare(
    [operator.mul], linear="either", fresh=True, writes_into=_MULTIPLY
)
declare([operator.add], linear="jointly", fresh=True, writes_into=_ADD)
declare([operator.sub], linear="jointly", fresh=True, writes_into=InPlace(subtract_into))
declare([operator.truediv], linear="first", fresh=True)
declare([operator.neg], linear="first")
declare([operator.matmul], linear="either")
declare([torch.mul], linear="either")
declare([torch.add], linear="jointly")
declare([torch.sub], linear="jointly")
declare([torch.neg], linear="first")
declare([torch.matmul], linear="either", fresh=True)
declare([torch.einsum], linear="either")

# Tensors of a form, and moves.
declare([torch.zeros_like], linear="first")
declare([torch.ones_like], linear="none")
declare(
    [operator.getitem, torch.sum, torch.cat, torch.stack, torch.flip, torch.cumsum, torch.roll, torch.reshape,
     torch.permute, F.pixel_shuffle, F.pixel_unshuffle],
    linear="first",
)  # fmt: skip

# Layers, as rules call them, and as the model does.
declare(
    [F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear],
    fresh=True,
)  # fmt: skip
declare(
    [aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.batch_norm.default,
     aten.layer_norm.default, aten.group_norm.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor,
     aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default],
    fresh=True,
)  # fmt: skip
for _name in ACTIVATIONS:
    declare([getattr(aten, _name).default], fresh=True, writes_into=InPlace(activation_into(_name)))

# Methods of tensors, and their attributes: of those only T and mT are the tensor, moved.
declare(
    ["sum", "mean", "cumsum", "flip", "t", "transpose", "permute", "reshape", "flatten", "unsqueeze", "squeeze",
     "expand", "sum_to_size", "to", "double", "float", "contiguous", "neg", "div"],
    linear="first",
)  # fmt: skip
declare(["add", "sub"], linear="jointly")
declare(["mul", "matmul"], linear="either")
declare(["size", "dim", "numel"], linear="none")
declare([getattr], linear="none")
declare([(getattr, "T"), (getattr, "mT")], linear="first")
declare([(getattr, "shape")], linear="none", reads=True)
