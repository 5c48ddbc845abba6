"""The first layer under rules that put ones in the place of its input: its denominators are constants."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxlrp.passes.optimize.base import OptimizerPass, emitted, retarget, weights_only, without_dead_code
from fxlrp.steps import primitives
from fxlrp.steps.batch_axis import rescale, rescale_to
from fxlrp.steps.operations import convolution_transpose, transposed_convolution_transpose
from fxlrp.steps.primitives import channels_last, divide, primitive, without_padding

_ALIKE: dict[Any, tuple[int, ...]] = {divide: (1,), without_padding: (1,), rescale: (2,), rescale_to: (2,)}
"""Which arguments of a step may be one for all items."""

_KEEP_FRONT: set[Any] = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
    torch.ops.aten.constant_pad_nd.default, torch.ones_like, torch.zeros_like, torch.mul, torch.add,
    operator.mul, operator.add, operator.sub, operator.truediv,
    primitives.positive, primitives.negative, primitives.squared, primitives.stabilize, primitives.without_padding,
}  # fmt: skip
"""Steps after which the batch still is the first axis, and an item what it is alone."""

_TRANSPOSES = (convolution_transpose, transposed_convolution_transpose)


@primitive
def ones_for(x: Tensor) -> Tensor:
    """Ones in the form of one item of ``x``: (1, ...)."""
    form = torch.channels_last if channels_last(x) else torch.contiguous_format
    return torch.ones((1, *x.shape[1:]), dtype=x.dtype, device=x.device).contiguous(memory_format=form)


class ConstantDenominators(OptimizerPass):
    """Computes what comes of a tensor of ones for one item, and not for each.

    Ones like an input stand for pixels in the first layer's rule, and say where a value carries
    signal. What is made of them depends on weights and shapes alone: it is the same for every item,
    and :class:`~fxlrp.passes.optimize.weights.FoldWeights` keeps it. Relevance times ones is relevance.
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        of_weights = weights_only(module.graph)
        for node in list(module.graph.nodes):
            if node.target is torch.ones_like and emitted(node) and node.args[0].op == "placeholder":
                self._fold(node, of_weights)
        without_dead_code(module.graph)
        return module

    def _fold(self, ones: fx.Node, of_weights: set[fx.Node]) -> None:
        for user in list(ones.users):
            if user.target is torch.mul or getattr(user.target, "__name__", "") == "mul":
                other = user.args[1] if user.args[0] is ones else user.args[0]
                if isinstance(other, fx.Node) and other.target in _TRANSPOSES and other.args[2] is ones.args[0]:
                    other.meta, name = user.meta, user.name
                    user.replace_all_uses_with(other)
                    ones.graph.erase_node(user)
                    other._rename(name)
        constant = {ones}
        for node in ones.graph.nodes:
            sources = node.all_input_nodes
            if node.op == "call_function" and emitted(node) and any(source in constant for source in sources):
                if all(source in constant or source in of_weights for source in sources):
                    if node.target not in _KEEP_FRONT:
                        return
                    constant.add(node)
                elif not _broadcasts(node, constant):
                    return
            elif node.op == "output" and any(source in constant for source in sources):
                return
        retarget(ones, ones_for, ones.args[0])


def _broadcasts(node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a step takes one item of a constant for all."""
    if getattr(node.target, "__name__", "") == "mul":
        return True
    places = _ALIKE.get(node.target, ())
    return all(i in places for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a in constant)
