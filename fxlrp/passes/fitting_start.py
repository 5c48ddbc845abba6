"""The start that fits a model, ``compile(start="auto")``: read off the end of its graph."""

from __future__ import annotations

import torch
from torch import fx

from fxlrp.common.errors import StartError
from fxlrp.passes.facts import facts
from fxlrp.passes.layers import weight_shape
from fxlrp.rules import starts
from fxlrp.vocabulary import Kind

_PROBABILITIES = ("softmax", "sigmoid", "hardsigmoid")
"""Operations whose results are probabilities: no softmax is taken of them again."""
_OF_PROBABILITIES = ("add", "sub", "mul", "div", "mean", "sum", "clamp", "stack", "cat", "prod", "maximum", "minimum")
"""Operations that make probabilities of probabilities: the mean of an ensemble, one minus another."""


def fitting_start(explained: fx.Node, forward: fx.GraphModule, of_classes: str) -> starts.Start:
    """The start for an output: never the softmax of what is a probability already.

    Where the graph does not say how many outputs there are, the start finds out when it is called.

    Args:
        explained: the node where relevance starts.
        forward: the annotated forward graph.
        of_classes: what suits the logits of several classes, a name out of :data:`fxlrp.rules.starts.OF_CLASSES`.
    """
    several, by_shape = starts.OF_CLASSES[of_classes]
    if _is_probability(explained):
        plain = facts(explained).nonnegative and not _is_scaled(explained)
        return starts.given if plain else starts.value
    last = facts(explained).operation
    if last is not None and last.name == "log_softmax":
        return starts.probability  # the model says probabilities, by their logarithms
    node = explained
    while True:
        operation, node_facts = facts(node).operation, facts(node)
        name = "" if operation is None else operation.name
        shape = weight_shape(node, forward)
        if shape is not None:
            classes = len(shape) >= 2 and shape[0] > 1 and "transpose" not in name
            return several if classes else by_shape
        keeps_channels = node_facts.kind is Kind.POINTWISE or "pool" in name
        moves = node_facts.kind is Kind.ROUTING and operation is not None and not operation.cuts
        if len(node_facts.operands) != 1 or not (moves or keeps_channels):
            return by_shape
        node = node_facts.operands[0][1]


def suited_start(start: starts.Start, explained: fx.Node) -> starts.Start:
    """A start that was asked for: the probability of a model that gives probabilities is its own.

    Args:
        start: the start.
        explained: the node where relevance starts.

    Raises:
        StartError: it takes logits, and the node gives probabilities.
    """
    if not _is_probability(explained):
        return start
    if start in (starts.log_odds, starts.softmax_gradient):
        raise StartError(
            f"start={starts.told(start)!r} takes logits, and the model gives probabilities: explain the model without "
            "its last softmax or sigmoid, or leave out start="
        )
    return starts.given if start is starts.probability else start


def _is_scaled(node: fx.Node) -> bool:
    """Whether a probability was multiplied by a number, or one was added to it."""
    node_facts = facts(node)
    name = "" if node_facts.operation is None else node_facts.operation.name
    return node_facts.kind is Kind.POINTWISE and name in ("add", "sub", "mul", "div")


def _is_probability(explained: fx.Node) -> bool:
    """Whether a value is a probability, or made of nothing but probabilities."""
    waiting, seen = [explained], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        node_facts = facts(node)
        name = "" if node_facts.operation is None else node_facts.operation.name
        if name in _PROBABILITIES:
            continue
        moves = node_facts.kind is Kind.ROUTING or node.target is torch.ops.aten.to.dtype
        if not node_facts.operands or not (moves or name in _OF_PROBABILITIES):
            return False
        waiting += [operand for _, operand in node_facts.operands]
    return True
