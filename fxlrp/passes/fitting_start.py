"""The start that fits a model, ``compile(start="auto")``: read off the end of its graph."""

from __future__ import annotations

import torch
from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.passes.layers import weight_shape
from fxlrp.rules import starts
from fxlrp.vocabulary import Kind

_PROBABILITIES = ("softmax", "sigmoid", "hardsigmoid")
"""Operations whose results are probabilities: no softmax is taken of them again."""


def fitting_start(explained: fx.Node, forward: fx.GraphModule) -> starts.Start:
    """The start for an output: never the softmax of what is a probability already.

    Where the graph does not say how many outputs there are, the start finds out when it is called.

    Args:
        explained: the node where relevance starts.
        forward: the annotated forward graph.
    """
    node, moved_only = explained, True
    while True:
        operation, node_facts = facts(node).operation, facts(node)
        name = "" if operation is None else operation.name
        if moved_only and name in _PROBABILITIES:
            return starts.given
        shape = weight_shape(node, forward)
        if shape is not None:
            several = len(shape) >= 2 and shape[0] > 1 and "transpose" not in name
            return starts.probability if several else starts.by_shape
        moves = node_facts.kind is Kind.ROUTING or node.target is torch.ops.aten.to.dtype
        keeps_channels = node_facts.kind is Kind.POINTWISE or "pool" in name
        if operation is None or len(node_facts.operands) != 1 or not (moves or keeps_channels) or operation.cuts:
            return starts.by_shape
        moved_only = moved_only and moves
        node = node_facts.operands[0][1]
