"""The blocks of a transformer, found in its graph: where attention and perceptron read and write the residual stream.

A block is the branch of a join with an identity skip. What it writes comes from its last layer; what that layer reads
are the units of the block: the results of the heads, or the neurons. So no name of a module is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.passes.joins import IDENTITY, Join
from fxlrp.vocabulary import Kind

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")

DECODER_INPUT = "decoder_input_ids"
"""The input of transformers' models that only their decoder reads."""

BlockKind = Literal["attn", "cross_attn", "mlp"]


@dataclass(frozen=True)
class Block:
    """An attention or a perceptron of a layer.

    Attributes:
        stack: ``"blocks"``, or ``"encoder"`` or ``"decoder"`` of a model that has both.
        layer: the number of the layer in its stack.
        kind: ``"attn"``, ``"cross_attn"``, which looks at the tokens of the encoder, or ``"mlp"``.
        before, after: the nodes of the residual stream before and behind the join.
        out: the node whose value is added to the stream.
        units: the node whose features are the results of the heads, one after the other, or the neurons.
        module: the path of the layer that reads the units.
    """

    stack: str
    layer: int
    kind: BlockKind
    before: str
    after: str
    out: str
    units: str
    module: str


def blocks_of(graph: fx.Graph, joins: Sequence[Join]) -> list[Block]:
    """The blocks of a transformer, in the order of its graph.

    Args:
        graph: the forward graph, with the facts of its nodes.
        joins: its joins.
    """
    nodes = {node.name: node for node in graph.nodes}
    decoder = _behind(nodes[DECODER_INPUT]) if DECODER_INPUT in nodes else set()
    found: list[Block] = []
    layers: dict[str, dict[str, int]] = {}
    for join in joins:
        number = _NUMBER.search(join.path)
        if join.kind != IDENTITY or number is None:
            continue
        stack = "blocks" if not decoder else "decoder" if nodes[join.name] in decoder else "encoder"
        if join.fork is None and stack != "decoder":
            continue
        # Of several stacks of layers in modules of their own the numbers begin anew.
        of_stack = layers.setdefault(stack, {})
        layer = of_stack.setdefault(f"{join.path[: number.start()]} {number[1]}", len(of_stack))
        fork = nodes[join.fork or join.skip]
        for out, last in _written(nodes[join.residual], fork):
            (_, units), *more = facts(last).operands
            attends = _attends(units, fork)
            if not more and (attends or join.fork is not None):
                # Values of another stack make no skip: what is added has not forked off the stream.
                kind: BlockKind = "mlp" if not attends else "attn" if join.fork is not None else "cross_attn"
                module = facts(last).origin.path
                found.append(Block(stack, layer, kind, join.skip, join.name, out.name, units.name, module))
    return found


def _behind(node: fx.Node) -> set[fx.Node]:
    """The nodes whose values depend on this one."""
    waiting, found = [node], set[fx.Node]()
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _written(residual: fx.Node, fork: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What is written to the stream, and the last layer on the way to it, of each branch that is added up."""
    waiting = [(residual, residual)]
    while waiting:
        out, node = waiting.pop(0)
        if node is fork:
            continue
        known = facts(node)
        operands = [operand for _, operand in known.operands]
        if known.parametric and known.kind is Kind.LINEAR:
            yield out, node
        elif known.kind is Kind.JOIN:
            waiting += [(operand, operand) for operand in operands]
        else:
            waiting += [(out, operand) for operand in operands[:1]]


def _attends(units: fx.Node, fork: fx.Node) -> bool:
    """Whether values are multiplied with values on the way: tokens look at tokens."""
    waiting, seen = [units], {fork}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if facts(node).kind is Kind.PRODUCT:
            return True
        waiting += [operand for _, operand in facts(node).operands]
    return False
