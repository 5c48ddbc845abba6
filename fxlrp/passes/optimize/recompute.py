"""Less memory for one more forward pass: values between joins are computed again where relevance needs them."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import fx

from fxlrp.passes.facts import KEY, Facts, facts
from fxlrp.passes.joins import dominators
from fxlrp.passes.optimize.base import OptimizerPass, emitted
from fxlrp.vocabulary import Kind

_FEW = 4
"""With fewer joins than these on the way of all signal, other values are kept in their place."""


def kept_values(forward: fx.Graph, explained: fx.Node) -> frozenset[str]:
    """The names of the values that are kept: of those that all signal passes, the joins.

    Where there are few, as in a plain stack of layers, it is every n-th of n² values.

    Args:
        forward: a forward graph, with the facts of its nodes.
        explained: where relevance starts.
    """
    forks = dominators([node for node in forward.nodes if node.op != "output" and facts(node).signal])
    passed, node = [], forks[explained]
    while node is not None:
        passed.append(node)
        node = forks[node]
    joins = [node.name for node in passed if facts(node).kind is Kind.JOIN]
    if len(joins) >= _FEW:
        return frozenset(joins)
    every = max(1, math.isqrt(len(passed)))
    return frozenset(node.name for node in passed[::-1][every - 1 :: every])


class Recompute(OptimizerPass):
    """Computes forward values again, from those that are kept, right before relevance needs them.

    Before::

        a = relu(x); b = conv2d(a, w); c = add(b, x); d = linear(c, v)
        …
        share = mul(a, conv2d_transpose(s, w))

    After::

        a = relu(x); b = conv2d(a, w); c = add(b, x); d = linear(c, v)
        …
        a_1 = relu(x); share = mul(a_1, conv2d_transpose(s, w))

    So ``a`` need not be held meanwhile. Each value is computed twice at most. What follows the last value that is kept
    is used at once, and is not.

    Args:
        kept: the names of the values that are kept.
    """

    def __init__(self, kept: Collection[str]) -> None:
        self.kept = kept

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        nodes = list(module.graph.nodes)
        order = {node: i for i, node in enumerate(nodes)}
        last = max((order[node] for node in nodes if node.name in self.kept), default=len(nodes))
        dropped = {node for node in nodes[:last] if self._is_dropped(node)}
        again: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            if not emitted(node):
                continue
            needed = _needed([source for source in node.all_input_nodes if source in dropped], dropped, again)
            for value in sorted(needed, key=order.__getitem__):
                with module.graph.inserting_before(node):
                    copy = module.graph.node_copy(value, lambda source: again.get(source, source))
                copy.meta = dict(value.meta)
                again[value] = copy
            for value in set(node.all_input_nodes) & again.keys():
                node.replace_input_with(value, again[value])
        return module

    def _is_dropped(self, node: fx.Node) -> bool:
        known = node.meta.get(KEY)
        return node.op == "call_function" and isinstance(known, Facts) and known.signal and node.name not in self.kept


def _needed(wanted: list[fx.Node], dropped: set[fx.Node], again: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The values that are to be computed again for ``wanted``, and were not yet."""
    needed: set[fx.Node] = set()
    waiting = [value for value in wanted if value not in again]
    while waiting:
        value = waiting.pop()
        if value not in needed:
            needed.add(value)
            waiting += [source for source in value.all_input_nodes if source in dropped and source not in again]
    return needed
