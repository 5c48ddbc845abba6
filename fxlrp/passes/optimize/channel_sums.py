"""Heatmaps: where relevance is summed over channels, the first layer's transpose need not tell them apart."""

from __future__ import annotations

from torch import Tensor, fx

from fxlrp.passes.optimize.base import OptimizerPass, inserted, retarget, without_dead_code
from fxlrp.passes.optimize.matching import Capture, Step
from fxlrp.steps.batch_axis import rescale_to
from fxlrp.steps.convolution import convolution_transpose
from fxlrp.steps.primitives import channel_sum, primitive


@primitive
def sum_inputs(weight: Tensor) -> Tensor:
    """The weights of a convolution, (out, in, *kernel), for the sum of its inputs' channels: (out, 1, *kernel)."""
    return weight.sum(dim=1, keepdim=True)


@primitive
def one_channel(x: Tensor) -> Tensor:
    """The first channel alone, for its form."""
    return x[:, :1]


@primitive
def without_channel(relevance: Tensor) -> Tensor:
    """(batch, 1, ...) to (batch, ...)."""
    return relevance.squeeze(1)


_BACK = Step(
    convolution_transpose, name="back", s=Capture("s"), weight=Capture("weight"), x=Capture("x"),
    stride=Capture("stride"), padding=Capture("padding"), dilation=Capture("dilation"), groups=1,
)  # fmt: skip
_PLAIN = Step(channel_sum, relevance=_BACK)
_RESCALED = Step(
    channel_sum, relevance=Step(rescale_to, share=_BACK, received=Capture("received"), support=None, batch_axis=None)
)


class SumChannels(OptimizerPass):
    """Sums the weights of the first layer over its input channels, and not the relevance that they give.

    Where the first layer's rule puts ones in the place of its input, a pixel's relevance is the
    transpose of the layer and nothing else: the sum over channels is the transpose by summed weights.

    Before::

        relevance = convolution_transpose(s, weight, x, stride, padding, dilation, 1)
        heat = channel_sum(relevance)

    After::

        summed = sum_inputs(weight)
        one = convolution_transpose(s, summed, one_channel(x), stride, padding, dilation, 1)
        heat = without_channel(one)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if node.target is channel_sum:
                self._push(node)
        without_dead_code(module.graph)
        return module

    def _push(self, node: fx.Node) -> None:
        a = _RESCALED.match(node) or _PLAIN.match(node)
        if a is None:
            return
        back = a["back"]
        weight = inserted(back, sum_inputs, a["weight"], name=f"{back.name}_weight")
        form = inserted(back, one_channel, a["x"])
        new = inserted(
            back, convolution_transpose, a["s"], weight, form, a["stride"], a["padding"], a["dilation"], 1
        )
        if "received" in a:
            new = inserted(node, rescale_to, new, a["received"])
        retarget(node, without_channel, new)
