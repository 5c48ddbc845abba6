"""Batch norms of the model in the convolution before them, for the forward pass alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize.base import OptimizerPass, emitted, retarget, without_dead_code
from fxlrp.steps.convolution import scale_leading
from fxlrp.steps.norm_transposes import batch_norm_scale, batch_norm_shift
from fxlrp.steps.primitives import primitive

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@primitive
def folded_bias(shift: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The bias of a convolution with the norm behind it in it."""
    return shift if bias is None else torch.addcmul(shift, scale, bias)


class FoldForwardNorms(OptimizerPass):
    """Folds batch norm in eval mode into the convolution before it, where nothing else reads that.

    The output of the model then differs from the model's own in the last digits.
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if node.target is aten.batch_norm.default and not emitted(node):
                self._fold(node)
        without_dead_code(module.graph)
        return module

    def _fold(self, norm: fx.Node) -> None:
        conv, weight, bias, mean, var, training, _, eps, *_ = norm.args
        if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or conv.kwargs:
            return
        if len(conv.users) > 1 or training:
            return
        x, kernel, *rest = conv.args
        own_bias = rest[0] if rest else None
        graph = norm.graph

        def step(target: Any, *args: Any) -> fx.Node:
            node = graph.create_node("call_function", target, args, {}, f"{conv.name}_{target.__name__}")
            node.meta[KEY] = Emitted(norm.name, "", "step")
            return node

        with graph.inserting_before(norm):
            scale = step(batch_norm_scale, weight, var, eps)
            scaled = step(scale_leading, kernel, scale)
            shift = step(folded_bias, step(batch_norm_shift, scale, bias, mean), scale, own_bias)
        retarget(norm, conv.target, x, scaled, shift, *rest[1:])
