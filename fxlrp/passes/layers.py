"""What a layer takes, read off its weight: how many channels, or features."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.common.tensors import tensor_at
from fxlrp.passes.facts import facts


def tensor_of(node: Any, forward: fx.GraphModule) -> torch.Tensor | None:
    """The parameter or buffer that ``node`` is; ``None`` where it is none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    tensor: torch.Tensor = tensor_at(forward, str(node.target))
    return tensor


def weight_shape(node: fx.Node, forward: fx.GraphModule) -> torch.Size | None:
    """The shape of a layer's weight; ``None`` for what is no layer with a tensor of the model for its weight."""
    operation = facts(node).operation
    if operation is None or not operation.parametric:
        return None
    weight = tensor_of(operation.arguments(node.args, node.kwargs).get("weight"), forward)
    return None if weight is None else weight.shape


def channels(node: fx.Node, forward: fx.GraphModule) -> int | None:
    """How many channels a convolution takes, or features a linear layer; ``None`` for anything else."""
    shape, operation = weight_shape(node, forward), facts(node).operation
    if shape is None or operation is None or operation.input_channels is None:
        return None
    return int(operation.input_channels(shape, operation.arguments(node.args, node.kwargs)))
