"""Folded weights: what depends on weights alone is computed once, and again when they change."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.derived import Derived
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize.base import OptimizerPass, emitted, without_dead_code
from fxlrp.passes.optimize.stem import ones_for

MODULE = "derived"


class FoldWeights(OptimizerPass):
    """Moves the steps that depend on weights alone, such as w⁺, into a module that keeps their results."""

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        graph = module.graph
        folded = self._foldable(graph)
        kept = [node for node in folded if any(user not in folded for user in node.users)]
        if not kept:
            return module
        inputs: Any = list(dict.fromkeys(n.args[0] for n in folded if n.target is ones_for))
        setattr(module, MODULE, Derived(_program(module, folded, inputs, kept)))
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            call = graph.create_node("call_module", MODULE, tuple(inputs), {}, MODULE)
            call.meta[KEY] = Emitted("", "", "step")
        for i, node in enumerate(kept):
            with graph.inserting_before(node):  # taken out where it is first read, it says what it is
                new = graph.create_node("call_function", getitem, (call, i))
            new.meta[KEY] = node.meta[KEY]
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in folded)
            new.meta["name"] = node.name
        for node in reversed(list(graph.nodes)):
            if node in folded:
                graph.erase_node(node)
        for node in graph.nodes:
            if "name" in node.meta:
                node._rename(node.meta.pop("name"))
        without_dead_code(graph)
        return module

    def _foldable(self, graph: fx.Graph) -> dict[fx.Node, None]:
        """The steps that depend on weights alone, in order."""
        folded: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node.op != "call_function" or not emitted(node):
                continue
            sources = node.all_input_nodes
            if node.target is ones_for or (sources and all(s.op == "get_attr" or s in folded for s in sources)):
                folded[node] = None
        return folded


def _program(
    module: fx.GraphModule, folded: dict[fx.Node, None], inputs: list[fx.Node], kept: list[fx.Node]
) -> fx.GraphModule:
    """The steps that are folded as a graph of their own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}
    for node in module.graph.nodes:
        if node in folded or (node.op == "get_attr" and any(user in folded for user in node.users)):
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output([copies[node] for node in kept])
    tensors: dict[str, torch.Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            tensors[str(node.target)] = value  # type: ignore[assignment]
    return fx.GraphModule(tensors, graph, class_name="Weights")
