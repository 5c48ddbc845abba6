"""Memory that is used again: a step writes into an operand that nobody reads afterwards."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from fxlrp.passes.optimize.base import OptimizerPass, retarget
from fxlrp.steps.declaration import facts_of


class ReuseMemory(OptimizerPass):
    """Lets steps write into operands at their end.

    A step's operand is at its end if it is the result of a step that makes new memory, if whoever
    else reads it comes before, and if none of those hands its memory on.

    Before::

        z = conv2d(x, positive)
        s = divide(relevance, z)
        share = mul(x, conv_transpose2d(s, positive))

    After::

        z = conv2d(x, positive)
        s = divide_into(relevance, z)
        share = multiply_into(conv_transpose2d(s, positive), x)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        order = {node: i for i, node in enumerate(module.graph.nodes)}
        fresh = {node for node in module.graph.nodes if _is_fresh(node)}
        for node in list(module.graph.nodes):
            into = facts_of(node.target).writes_into
            if into is None or node.kwargs:
                continue
            for positions in into.orders:
                args = [node.args[i] for i in positions] + list(node.args[len(positions) :])
                nodes = ((i, arg) for i, arg in enumerate(args) if isinstance(arg, fx.Node))
                free = {i for i, arg in nodes if arg in fresh and _ends_at(arg, node, order)}
                if _writes_numbers(node, args) or not free.issuperset(into.writes):
                    continue
                retarget(node, into.step, *args)
                if into.spare in free:
                    node.kwargs = {"spare": True}
                fresh.add(node)
                break
        return module


def _is_fresh(node: fx.Node) -> bool:
    """Whether ``node`` is memory of its own: the result of a step that makes it, or one of its several results."""
    if node.target is operator.getitem:
        source = facts_of(getattr(node.args[0], "target", None))
        return source.fresh and source.several
    made_by = facts_of(node.target)
    return made_by.fresh and not made_by.several


def _writes_numbers(node: fx.Node, args: list[Any]) -> bool:
    """Whether ``node`` is an operation of Python's with a number, not a tensor, for an operand."""
    binary = node.target in (operator.mul, operator.add, operator.sub)
    return binary and not all(isinstance(arg, fx.Node) for arg in args[:2])


def _ends_at(value: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether nobody reads the memory of ``value`` after ``node``, which reads it once."""
    others = [user for user in value.users if user is not node]
    before = all(order[user] < order[node] and facts_of(user.target, user.args).reads for user in others)
    return before and list(node.args).count(value) == 1
