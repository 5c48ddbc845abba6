"""From a node's relevance to its operands': by the assigned rule, or back by the transpose of a move."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.passes.facts import Facts, facts, operation_of, rule_of
from fxlrp.passes.site import Site
from fxlrp.passes.values import Values
from fxlrp.rules.rule import CONSTANT, PADDING, Shares, fitted
from fxlrp.steps.routing import outside
from fxlrp.vocabulary import Kind

Relevance = Any
"""A proxy; for a value that is a list, pairs of an index and a proxy."""


def propagate(values: Values, node: fx.Node, relevance: Relevance, *, signed: bool) -> Shares:
    """Share ``relevance`` of ``node`` out over its operands.

    Args:
        values: the forward values.
        node: a forward node that carries signal.
        relevance: what it received.
        signed: whether that may be negative.
    """
    node_facts = facts(node)
    site = Site(values, node, signed=signed)
    if node_facts.kind is Kind.ROUTING:
        return _routing(values, node, node_facts, relevance, site)
    return rule_of(node_facts).at(relevance, site)


def _routing(values: Values, node: fx.Node, node_facts: Facts, relevance: Relevance, site: Site) -> Shares:
    operation = operation_of(node_facts)
    arguments = values.arguments(node)
    arguments["output"] = values.value(node)
    assert operation.transpose is not None
    moved = operation.transpose(relevance, arguments)
    names = operation.operand_names()
    if names == ("tensors",):
        entries: Any = node.args[0]
        carries = [isinstance(entry, fx.Node) and facts(entry).signal for entry in entries]
    elif len(names) > 1:
        carries = site.carries
    else:
        shares = Shares([moved])
        if operation.pads:
            shares.absorbed[PADDING] = lambda: outside(relevance, arguments["pad"])
        if callable(operation.loses):
            lost = operation.loses
            shares.absorbed[CONSTANT] = lambda: lost(relevance, arguments)
        elif operation.loses:
            shares.absorbed[CONSTANT] = lambda: relevance - moved
        return shares
    pieces = [(signal, moved[i]) for i, signal in enumerate(carries)]
    shares = Shares([piece for signal, piece in pieces if signal])
    if names != ("tensors",):
        shares = fitted(shares, site)
        if not all(carries):  # the first piece is as the value is, the other may be a part of it
            shares.absorbed[CONSTANT] = lambda: relevance - moved[0] if carries[0] else moved[0]
        return shares
    constants = [piece for signal, piece in pieces if not signal]
    if constants and operation.name == "cat" and values.where(node):  # whose entries are of the node
        shares.absorbed[CONSTANT] = lambda: torch.cat(
            [torch.zeros_like(piece) if signal else piece for signal, piece in pieces], arguments["dim"]
        )
        return shares
    if operation.name == "stack":  # the batch of what is absorbed is where the node has it
        constants = [piece.unsqueeze(arguments["dim"]) for piece in constants]
    if constants:
        shares.absorbed[CONSTANT] = lambda: constants
    return shares
