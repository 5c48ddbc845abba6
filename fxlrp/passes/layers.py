"""What a layer is: how many channels it takes, and its weights with the norms next to it in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.common.tensors import tensor_at
from fxlrp.passes.facts import Facts, facts
from fxlrp.passes.values import Values
from fxlrp.steps.norm_transposes import all_over, batch_norm_scale, batch_norm_shift, in_channels


def tensor_of(node: Any, forward: fx.GraphModule) -> torch.Tensor | None:
    """The parameter or buffer that ``node`` is; ``None`` where it is none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    tensor: torch.Tensor = tensor_at(forward, str(node.target))
    return tensor


def weight_shape(node: fx.Node, forward: fx.GraphModule) -> torch.Size | None:
    """The shape of a layer's weight; ``None`` for what is no layer with a tensor of the model for its weight."""
    operation = facts(node).operation
    if operation is None or not facts(node).parametric:
        return None
    weight = tensor_of(operation.arguments(node.args, node.kwargs).get("weight"), forward)
    return None if weight is None else weight.shape


def channels(node: fx.Node, forward: fx.GraphModule) -> int | None:
    """How many channels a convolution takes, or features a linear layer; ``None`` for anything else."""
    shape, operation = weight_shape(node, forward), facts(node).operation
    if shape is None or operation is None or operation.input_channels is None:
        return None
    return int(operation.input_channels(shape, operation.arguments(node.args, node.kwargs)))


def with_norms(values: Values, node_facts: Facts, layer: tuple[Any, Any, Any], x: Any) -> tuple[Any, Any, Any]:
    """A linear operation, its weights and its bias, with the norms that are folded into it in them.

    Args:
        values: the forward values.
        node_facts: those of its node.
        layer: operation, weights and bias as they stand in the model; ``None`` for what it has not.
        x: what it reads; where a norm before it is folded, what that norm reads.

    Returns:
        The same three; the bias in a shape that adds to the output.
    """
    operation, weight, bias = layer
    bias = None if bias is None else operation.broadcast_bias(bias)
    if node_facts.norm_before is not None:
        scale, shift = _affine(values, node_facts.norm_before)
        shifted = operation.apply(all_over(shift, x), weight)
        operation, weight = operation.scaled_inputs(weight, scale, x)
        bias = shifted if bias is None else bias + shifted
    if node_facts.norm_behind is not None:
        scale, shift = _affine(values, node_facts.norm_behind)
        operation, weight = operation.scaled_outputs(weight, scale, x)
        scale, shift = in_channels(scale, x), in_channels(shift, x)
        bias = shift if bias is None else bias * scale + shift
    return operation, weight, bias


def _affine(values: Values, norm: fx.Node) -> tuple[Any, Any]:
    """Scale and shift of the channels in a batch norm."""
    a = values.arguments(norm)
    scale = batch_norm_scale(a["weight"], a["running_var"], a["eps"])
    return scale, batch_norm_shift(scale, a["bias"], a["running_mean"])
