"""Building graphs with proxies: names and metadata for every node that is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


class Builder(fx.proxy.GraphAppendingTracer):
    """Records calls on proxies into ``graph``, each node named and told where it comes from.

    Attributes:
        name: a function from a node's target to the name that it should get.
        label: called with every new node.
    """

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(graph)
        self.name: Callable[[Any], str] = target_name
        self.label: Callable[[fx.Node], None] = lambda node: None

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
                    type_expr: Any = None) -> fx.Node:
        # fx proposes names such as conv2d_default; ours say where a node comes from.
        node = self.graph.create_node(kind, target, args, kwargs, self.name(target), type_expr)
        self.label(node)
        return node

    def proxy_of(self, node: fx.Node) -> fx.Proxy:
        """A proxy for a node that is already there."""
        return fx.Proxy(node, self)


def target_name(target: Any) -> str:
    """The short name of what a node calls."""
    if isinstance(target, str):
        return target.replace(".", "_")
    text = getattr(target, "__name__", None) or str(target)
    return text.split(".")[0]


def identifier(path: str) -> str:
    """A module path as a part of a node's name."""
    return path.replace(".", "_")
