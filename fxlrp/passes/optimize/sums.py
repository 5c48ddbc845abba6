"""Sums that are known: relevance that was rescaled adds up to what it was rescaled to."""

from __future__ import annotations

from torch import fx

from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize.base import OptimizerPass, inserted, retarget
from fxlrp.passes.optimize.matching import Capture, Step
from fxlrp.steps.batch_axis import rescale, rescale_signed_to, rescale_to, sum_items
from fxlrp.steps.routing import unreshape

_RESCALE = Step(
    rescale, share=Capture("share"), relevance=Capture("relevance"), support=Capture("support"),
    signed=Capture("signed"), batch_axis=Capture("batch_axis"), received_batch_axis=Capture("received_batch_axis"),
)  # fmt: skip
_RESHAPED = Step(unreshape, relevance=Step(rescale_to, rescale_signed_to, name="source"))


class KnownSums(OptimizerPass):
    """Takes the sum that a node must hand on from the node before, where that one knows it.

    Relevance of any sign becomes ``rescale_signed_to`` in the same way.

    Before::

        relevance_b = rescale(share_b, relevance_c, None, False)
        relevance_a = rescale(share_a, relevance_b, None, False)

    After::

        received = sum_items(relevance_c)
        relevance_b = rescale_to(share_b, received, None)
        relevance_a = rescale_to(share_a, received, None)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        sums: dict[fx.Node, fx.Node] = {}  # relevance with the batch in front, and its sum over each item
        for node in list(module.graph.nodes):
            reshaped = _RESHAPED.match(node)
            if reshaped is not None:
                # Whoever reads it as relevance with the batch in front says that it still is there.
                if reshaped["source"] in sums:
                    sums[node] = sums[reshaped["source"]]
                continue
            a = _RESCALE.match(node)
            if a is None:
                continue
            source, front = a["relevance"], a["received_batch_axis"] is None
            received = sums.get(source) if front else None
            if received is None:
                received = self._sum(node, source, a["received_batch_axis"])
                if front:
                    sums[source] = received
            optional = [a["support"], a["batch_axis"]] if a["batch_axis"] is not None else [a["support"]]
            to = rescale_signed_to if a["signed"] else rescale_to
            retarget(node, to, a["share"], received, *optional)
            if a["batch_axis"] is None and a["support"] is None:
                sums[node] = received
        return module

    def _sum(self, node: fx.Node, source: fx.Node, batch_axis: object) -> fx.Node:
        """The sum over each item, as early as it can be had: what is summed need then not be kept."""
        if batch_axis is not None:
            return inserted(node, sum_items, source, batch_axis, name=f"{node.name}_received")
        with node.graph.inserting_after(source):
            new = node.graph.create_node("call_function", sum_items, (source,), {}, f"{node.name}_received")
        emitted: Emitted = node.meta[KEY]
        new.meta[KEY] = Emitted(emitted.node, emitted.rule, "step")
        return new
