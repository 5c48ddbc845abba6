"""The graph that is being emitted: a copy of the forward graph, and the steps written behind it."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import fx

from fxlrp.common.tensors import tensor_at, tensor_names
from fxlrp.passes.building import Builder, target_name
from fxlrp.passes.facts import KEY, Emitted, Facts, facts


class Writer:
    """Writes the relevance graph.

    Args:
        forward: the forward graph, rules assigned.

    Attributes:
        graph: the graph that is being written.
        copies: from forward nodes to their copies in it.
        outputs: what the copied model returns: the value that is explained, then all outputs.
        builder: records calls on proxies.
        scope_name: the forward node that new steps belong to.
        modules: modules that the program calls, by name.
    """

    def __init__(self, forward: fx.GraphModule) -> None:
        self.forward = forward
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.outputs: Any = self.graph.graph_copy(forward.graph, self.copies)
        self.builder = Builder(self.graph)
        self.inputs = [node for node in forward.graph.nodes if node.op == "placeholder"]
        self.scope_name = ""
        self.modules: dict[str, Any] = {}
        self._last_argument = self.copies[self.inputs[-1]]

    def argument(self, name: str) -> Any:
        """One more argument of the program, behind the others."""
        with self.graph.inserting_after(self._last_argument):
            taken = {str(node.target) for node in self.graph.nodes if node.op == "placeholder"}
            node = self.graph.placeholder(f"{name}_" if name in taken else name, default_value=None)
        node.meta[KEY] = Facts(facts(self._last_argument).origin)
        self._last_argument = node
        return self.builder.proxy_of(node)

    def batch_size(self) -> Any:
        """The number of items, read off the first input; one where all inputs together are one item."""
        axis = facts(self.inputs[0]).batch
        if axis is None:
            return 1
        with self.graph.inserting_after(self._last_argument):
            shape = self.graph.create_node(
                "call_function", getattr, (self.copies[self.inputs[0]], "shape"), {}, "input_shape"
            )
        with self.graph.inserting_after(shape):
            size = self.graph.create_node("call_function", getitem, (shape, axis), {}, "batch")
        for node in (shape, size):
            node.meta[KEY] = Facts(facts(self._last_argument).origin)
        return self.builder.proxy_of(size)

    def scope(self, node: fx.Node, rule: str, role: str = "step") -> None:
        """Let what is written next belong to the forward node ``node``."""
        self.scope_name = node.name

        def label(new: fx.Node) -> None:
            new.meta[KEY] = Emitted(node.name, rule, role)

        self.builder.label = label
        self.builder.name = lambda target: f"{node.name}_{target_name(target)}"

    def call_module(self, name: str, module: Any, *arguments: Any) -> Any:
        """Call a module, which becomes a part of the program."""
        self.modules[name] = module
        return self.builder.create_proxy("call_module", name, arguments, {})

    def returns(self, results: Any) -> None:
        """Let the program return ``results``, proxies in lists and dicts."""
        self.graph.output(fx.node.map_aggregate(results, lambda v: v.node if isinstance(v, fx.Proxy) else v))

    def assemble(self) -> fx.GraphModule:
        """The program, without dead code."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.graph.lint()
        tensors = {name: tensor_at(self.forward, name) for name in tensor_names(self.graph)}
        return fx.GraphModule({**tensors, **self.modules}, self.graph, class_name="Relevance")
