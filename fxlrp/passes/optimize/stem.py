"""The first layer under rules that put ones in the place of its input: its denominators are constants."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from fxlrp.passes.optimize.base import OptimizerPass, emitted, retarget, weights_only, without_dead_code
from fxlrp.steps.convolution import convolution_transpose, transposed_convolution_transpose
from fxlrp.steps.declaration import facts_of, primitive
from fxlrp.steps.primitives import channels_last

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

    Before::

        ones = ones_like(x)
        z = conv2d(ones, weight)
        share = mul(ones, convolution_transpose(divide(relevance, z), weight, x, …))

    After::

        ones = ones_for(x)  # one item, kept by FoldWeights as z is
        z = conv2d(ones, weight)
        share = convolution_transpose(divide(relevance, z), weight, x, …)
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
            if user.target in (torch.mul, operator.mul):
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
                    if not facts_of(node.target).keeps_batch:
                        return
                    constant.add(node)
                elif not _broadcasts(node, constant):
                    return
            elif node.op == "output" and any(source in constant for source in sources):
                return
        retarget(ones, ones_for, ones.args[0])


def _broadcasts(node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a step takes one item of a constant for all."""
    places = {i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a in constant}
    nested = sum(source in constant for source in node.all_input_nodes) > len({node.args[i] for i in places})
    return not nested and places <= set(facts_of(node.target).one_for_all)
