"""Batch norms of the model in the convolution before them, for the forward pass alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize.base import OptimizerPass, emitted, retarget, without_dead_code
from fxlrp.passes.optimize.matching import Capture, Step
from fxlrp.steps.convolution import scale_leading
from fxlrp.steps.norm_transposes import batch_norm_scale, batch_norm_shift
from fxlrp.steps.primitives import primitive

aten = torch.ops.aten

_CONV = Step(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, name="conv",
    input=Capture("x"), weight=Capture("kernel"), bias=Capture("conv_bias"),
)  # fmt: skip
_NORM = Step(
    aten.batch_norm.default, input=_CONV, weight=Capture("weight"), bias=Capture("bias"),
    running_mean=Capture("mean"), running_var=Capture("var"), training=False, eps=Capture("eps"),
)  # fmt: skip


@primitive
def folded_bias(shift: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The bias of a convolution with the norm behind it in it."""
    return shift if bias is None else torch.addcmul(shift, scale, bias)


class FoldForwardNorms(OptimizerPass):
    """Folds batch norm in eval mode into the convolution before it, where nothing else reads that.

    The output of the model then differs from the model's own in the last digits.

    Before::

        conv = conv2d(x, weight)
        norm = batch_norm(conv, norm_weight, norm_bias, mean, var, False, 0.1, 1e-5, True)

    After::

        scale = batch_norm_scale(norm_weight, var, 1e-5)
        norm = conv2d(x, scale_leading(weight, scale), batch_norm_shift(scale, norm_bias, mean))
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if node.target is aten.batch_norm.default and not emitted(node):
                self._fold(node)
        without_dead_code(module.graph)
        return module

    def _fold(self, norm: fx.Node) -> None:
        a = _NORM.match(norm)
        if a is None:
            return
        conv, graph = a["conv"], norm.graph
        if len(conv.users) > 1 or conv.kwargs:
            return

        def step(target: Any, *args: Any) -> fx.Node:
            node = graph.create_node("call_function", target, args, {}, f"{conv.name}_{target.__name__}")
            node.meta[KEY] = Emitted(norm.name, "", "step")
            return node

        with graph.inserting_before(norm):
            scale = step(batch_norm_scale, a["weight"], a["var"], a["eps"])
            scaled = step(scale_leading, a["kernel"], scale)
            shift = step(folded_bias, step(batch_norm_shift, scale, a["bias"], a["mean"]), scale, a["conv_bias"])
        retarget(norm, conv.target, a["x"], scaled, shift, *conv.args[3:])
