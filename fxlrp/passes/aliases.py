"""In-place operations made functional: who reads a value after it was overwritten."""

from __future__ import annotations

import operator
from operator import getitem
from typing import Any

from torch import fx

from fxlrp.vocabulary import VOCABULARY, Kind, Unsupported

IN_PLACE_OPERATORS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow})


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", target)
    return target if isinstance(target, str) else str(getattr(packet, "__name__", ""))


def overwrites(node: fx.Node) -> bool:
    """Whether a captured node overwrites its first argument."""
    if node.kwargs.get("inplace", False) or node.target in IN_PLACE_OPERATORS:
        return True
    name = called(node)
    return node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")


class Aliases:
    """The value that each captured node stands for, while in-place operations come by.

    An overwritten value is replaced for every later reader, under each of its names. A
    *view* of it (or a value that it is a view of) that is still read afterwards cannot
    be followed, and is reported instead of being silently stale.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._values: dict[fx.Node, Any] = {}
        self._storage: dict[fx.Node, fx.Node] = {}  # a new node -> the node whose memory it may share
        self._names: dict[fx.Node, list[fx.Node]] = {}  # that node -> captured nodes that may share it
        position = {node: i for i, node in enumerate(graph.nodes)}
        self._position = position
        self._last_use = {node: max((position[u] for u in node.users), default=-1) for node in graph.nodes}

    def value(self, node: fx.Node) -> Any:
        """What ``node`` stands for now."""
        return self._values[node]

    def bind(self, node: fx.Node, value: Any) -> None:
        """Let the captured ``node`` stand for ``value``."""
        self._values[node] = value
        if isinstance(value, fx.Proxy):
            self._names.setdefault(self._memory(value.node), []).append(node)

    def overwrite(self, node: fx.Node) -> None:
        """``node`` is an in-place operation on its first argument: its result is what that holds from now on."""
        target = node.all_input_nodes[0]
        before, after = self._values[target], self._values[node]
        if after is before:
            return  # a no-op, such as dropout: nothing was overwritten
        now = self._position[node]
        sharing = self._names.pop(self._memory(before.node), [])
        for name in sharing:
            if self._values[name] is not before and name is not node and self._last_use[name] > now:
                raise Unsupported("an in-place operation on memory of which a view is read afterwards")
        self._storage[after.node] = after.node
        self._names[after.node] = []
        for name in [*sharing, node]:
            if self._values[name] is before or name is node:
                self._values[name] = after
                self._names[after.node].append(name)

    def _memory(self, node: fx.Node) -> fx.Node:
        """The node whose memory ``node`` may share: views point at what they are views of."""
        if node not in self._storage:
            operation = VOCABULARY.canonical(node.target)
            view = node.target is getitem or (operation is not None and operation.kind is Kind.ROUTING)
            sources = node.all_input_nodes
            self._storage[node] = self._memory(sources[0]) if view and len(sources) > 0 else node
        return self._storage[node]


