"""Folded weights: what depends on weights alone is computed once, and again when they change."""

from __future__ import annotations

from operator import getitem

from torch import fx

from fxlrp.common.tensors import DERIVED, tensor_at, tensor_names
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize.base import OptimizerPass, retarget, weights_only, without_dead_code
from fxlrp.passes.optimize.derived import Derived


class FoldWeights(OptimizerPass):
    """Moves the steps that depend on weights alone, such as w⁺, into a module that keeps their results.

    Before::

        positive = positive(weight)
        z = conv2d(x, positive)

    After::

        derived = self.derived()  # computed once, and anew where a weight was written to
        positive = derived[0]
        z = conv2d(x, positive)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        graph = module.graph
        weight_nodes = weights_only(graph)
        folded = {node: None for node in graph.nodes if node in weight_nodes and node.op != "get_attr"}
        kept = [node for node in folded if any(user not in folded for user in node.users)]
        if not kept:
            return module
        setattr(module, DERIVED, Derived(_program(module, folded, kept)))
        last = [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(last):
            call = graph.create_node("call_module", DERIVED, (), {}, DERIVED)
            call.meta[KEY] = Emitted("", "", "step")
        for i, node in enumerate(kept):  # where it was made it is taken out, under its name
            retarget(node, getitem, call, i)
        without_dead_code(graph)
        return module


def _program(module: fx.GraphModule, folded: dict[fx.Node, None], kept: list[fx.Node]) -> fx.GraphModule:
    """The steps that are folded as a graph of their own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node in folded or (node.op == "get_attr" and any(user in folded for user in node.users)):
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output([copies[node] for node in kept])
    tensors = {name: tensor_at(module, name) for name in tensor_names(graph)}
    return fx.GraphModule(tensors, graph, class_name="Weights")
