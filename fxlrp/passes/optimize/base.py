"""What the optimiser's passes share: an emitted graph, and how they read and write it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.common.tensors import tensor_at
from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import KEY, Emitted


class OptimizerPass(Pass):
    """Base of the passes over an emitted program: what it returns stays the same but for rounding."""

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(node.op == "output" or KEY in node.meta, f"{node} does not say what it belongs to")

    def ensures(self, module: fx.GraphModule) -> None:
        self.requires(module)

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        result = self.of_graph(module)
        result.recompile()
        return result

    def of_graph(self, module: fx.GraphModule) -> fx.GraphModule:
        """The same, but the code is left as it was: to write it takes longer than most passes."""
        return super().__call__(module)


def emitted(node: fx.Node) -> bool:
    """Whether ``node`` belongs to the propagation of relevance, not to the model."""
    return isinstance(node.meta.get(KEY), Emitted)


def weights_only(graph: fx.Graph) -> set[fx.Node]:
    """The tensors of the model, and the steps that depend on nothing but them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        step = node.op == "call_function" and emitted(node)
        sources = node.all_input_nodes
        of_weights = bool(sources) and all(source in found for source in sources)
        if node.op == "get_attr" or (step and of_weights):
            found.add(node)
    return found


def weight_shapes(module: fx.GraphModule) -> dict[fx.Node, torch.Size]:
    """The shapes of the model's tensors, and of what is made of nothing else; found without computing.

    Of a step that looks at the numbers, which then are not there, no shape is told.
    """
    values: dict[fx.Node, Any] = {}
    weight_nodes = weights_only(module.graph)
    for node in module.graph.nodes:
        if node not in weight_nodes:
            continue
        if node.op == "get_attr":
            tensor = tensor_at(module, str(node.target))
            values[node] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        elif all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with suppress(Exception):
                values[node] = node.target(*args, **kwargs)
    return {node: value.shape for node, value in values.items() if isinstance(value, Tensor)}


def inserted(node: fx.Node, target: Callable[..., Any], *args: Any, name: str | None = None) -> fx.Node:
    """A new call right before ``node``, of the same origin."""
    with node.graph.inserting_before(node):
        new = node.graph.create_node("call_function", target, args, {}, name)
    origin = node.meta[KEY]
    new.meta[KEY] = Emitted(origin.node, origin.rule, "step") if isinstance(origin, Emitted) else origin
    return new


def retarget(node: fx.Node, target: Callable[..., Any], *args: Any) -> None:
    """Let ``node`` call something else; its name, its readers and what is known of it stay."""
    node.target = target
    node.args = args
    node.kwargs = {}


def without_dead_code(graph: fx.Graph) -> None:
    """Erase what nothing reads."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
