"""Common subexpressions: what two rules, or two calls of a layer, compute alike is computed once."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.optimize.base import OptimizerPass, emitted, without_dead_code


class ShareSteps(OptimizerPass):
    """Merges steps of rules that call the same function with the same arguments.

    Before::

        positive_1 = positive(weight)
        positive_2 = positive(weight)
        share = linear(s, positive_2)

    After::

        positive_1 = positive(weight)
        share = linear(s, positive_1)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        found: dict[Any, fx.Node] = {}
        for node in list(module.graph.nodes):
            if node.op not in ("call_function", "get_attr"):
                continue
            key = node.op, node.target, _key(node.args), _key(node.kwargs)
            first = found.setdefault(key, node)
            if first is not node and (emitted(node) or node.op == "get_attr"):
                node.replace_all_uses_with(first)
        without_dead_code(module.graph)
        return module


def _key(value: Any) -> Any:
    """An argument as a part of a dictionary's key: 1, 1.0 and True are different."""
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(entry)) for name, entry in value.items())
    if isinstance(value, slice):
        return slice, _key((value.start, value.stop, value.step))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value
