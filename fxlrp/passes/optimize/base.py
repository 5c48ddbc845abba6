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
        return self.finished(self.of_graph(module))

    def of_graph(self, module: fx.GraphModule) -> fx.GraphModule:
        """The same, but its graph is not checked and its code is left as it was: both take longer than most passes."""
        self.requires(module)
        return self.run(module)

    def finished(self, module: fx.GraphModule) -> fx.GraphModule:
        """What passes made, checked, and with the code that belongs to it."""
        module.graph.lint()
        self.ensures(module)
        module.recompile()
        return module


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


class WeightShapes:
    """The shapes of the model's tensors, and of what is made of nothing else; found without computing, when asked for.

    Of a step that looks at the numbers, which then are not there, no shape is told.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.of_weights = module, weights_only(module.graph)
        self.values: dict[fx.Node, Any] = {}

    def get(self, node: Any) -> torch.Size | None:
        """The shape of what ``node`` gives; ``None`` where that is no tensor, or depends on the input."""
        value = self._value(node) if node in self.of_weights else None
        return value.shape if isinstance(value, Tensor) else None

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values:
            self.values[node] = self._found(node)
        return self.values[node]

    def _found(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            tensor = tensor_at(self.module, str(node.target))
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if not callable(node.target) or any(self._value(source) is None for source in node.all_input_nodes):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        with suppress(Exception):
            return node.target(*args, **kwargs)
        return None


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
