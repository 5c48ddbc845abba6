"""Joins: the adds where two branches of the signal meet, found by dominators.

The *fork* of a join is the nearest node that every way from the inputs to the join
passes: its immediate dominator. The branch that does less between fork and join is the
skip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from operator import getitem
from typing import Any

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import facts
from fxlrp.vocabulary import Kind

IDENTITY = "identity"
PROJECTION = "projection"
MERGE = "merge"


class JoinKind(str, Enum):
    """The kinds of joins, as keys of ``compile(rules=…)``; ``Join.kind`` holds their values."""

    IDENTITY = IDENTITY
    PROJECTION = PROJECTION
    MERGE = MERGE

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


@dataclass(frozen=True)
class Join:
    """An add (or sub) of two signals.

    Attributes:
        name: the name of the add in the graph.
        kind: ``"identity"``, ``"projection"`` or ``"merge"``.
        skip, residual: the names of its operands, the skip being the branch that does less.
        fork: the name of the node where the branches part; ``None`` where they come from
            different inputs.
        path: the module that the add belongs to.
    """

    name: str
    kind: str
    skip: str
    residual: str
    fork: str | None
    path: str


class FindJoins(Pass):
    """Tells the skip from the residual at each add of two signals.

    Requires annotated nodes; ensures that each node of kind join knows its branches, in
    ``facts(node).join``, and every node how many joins lie before it.
    """

    def requires(self, module: fx.GraphModule) -> None:
        check(any(facts(n).kind is Kind.INPUT for n in module.graph.nodes), "no input is known: annotate first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        signal = [node for node in module.graph.nodes if node.op != "output" and facts(node).signal]
        joins = [node for node in signal if facts(node).kind is Kind.JOIN]
        if joins:
            forks = dominators(signal)
            for node in joins:
                facts(node).join = describe(node, forks[node])
        for node in signal:
            before = max((facts(operand).after_joins for _, operand in facts(node).operands), default=0)
            facts(node).after_joins = before + (facts(node).kind is Kind.JOIN)
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(facts(node).kind is not Kind.JOIN or facts(node).join is not None, f"{node} has no branches")


def dominators(signal: Iterable[fx.Node]) -> dict[fx.Node, fx.Node | None]:
    """The immediate dominator of every node that carries signal; ``None`` where none is a node."""
    import networkx as nx  # takes a quarter of a second, which `import fxlrp` does not need

    graph: Any = nx.DiGraph()
    for node in signal:
        operands: list[Any] = [operand for _, operand in facts(node).operands]
        graph.add_edges_from((operand, node) for operand in operands or [_Root])
    found: dict[fx.Node, fx.Node | None] = {}
    for node, dominator in nx.immediate_dominators(graph, _Root).items():
        found[node] = None if dominator is _Root else dominator
    return found


class _Root:
    """The one root of the graph that networkx sees (``None`` is not allowed as a node)."""


def describe(node: fx.Node, fork: fx.Node | None) -> Join:
    """The branches of the join at ``node`` and their kind."""
    (_, left), (_, right) = facts(node).operands
    ways = [between(fork, operand) for operand in (left, right)]
    layers = [sum(_is_layer(n) for n in way) for way in ways]
    identities = [is_identity(left, right, ways[1]), is_identity(right, left, ways[0])]
    if any(identities):
        skip = 0 if identities[0] and not (identities[1] and layers[1] < layers[0]) else 1
        kind = IDENTITY
    else:
        skip = 0 if layers[0] < layers[1] else 1
        kind = PROJECTION if layers[skip] < layers[1 - skip] and is_projection(ways[skip]) else MERGE
    operands = (left, right)
    return Join(
        name=node.name, kind=kind, skip=operands[skip].name, residual=operands[1 - skip].name,
        fork=fork.name if fork is not None else None, path=facts(node).origin.path,
    )


def between(fork: fx.Node | None, operand: fx.Node) -> set[fx.Node]:
    """The nodes on the ways from ``fork`` (left out) to ``operand`` (included)."""
    found: set[fx.Node] = set()
    waiting = [operand]
    while waiting:
        node = waiting.pop()
        if node is not fork and node not in found:
            found.add(node)
            waiting.extend(source for _, source in facts(node).operands)
    return found


def is_identity(operand: fx.Node, other: fx.Node, way: set[fx.Node]) -> bool:
    """Whether ``operand``, data movement and constant scales stripped, is an ancestor of ``other``.

    ``way`` holds the nodes between the fork and ``other``. Two parts cut out of one value
    are no identity, and neither are a value and its own parts put together anew (rotary
    embeddings).
    """
    node = operand
    cut = all(_moves(n) for n in way)
    while True:
        readers = [user for user in node.users if user in way or user is other]
        if cut:
            readers = [user for user in readers if not _cuts(user)]
        if readers or node is other:
            return True
        node_facts = facts(node)
        if not _moves(node) or len(node_facts.operands) != 1:
            return False
        cut = cut or _cuts(node)
        node = node_facts.operands[0][1]


def _moves(node: fx.Node) -> bool:
    """Data movement, or a product with a constant."""
    kind = facts(node).kind
    return kind is Kind.ROUTING or (kind is Kind.POINTWISE and _scales(node))


def _cuts(node: fx.Node) -> bool:
    operation = facts(node).operation
    return node.target is getitem or (operation is not None and operation.cuts)


def _scales(node: fx.Node) -> bool:
    """A product with, or a quotient by, a constant: layer scale."""
    return str(node.target) in ("aten.mul.Tensor", "aten.div.Tensor", "aten.neg.default")


def is_projection(way: set[fx.Node]) -> bool:
    """One linear map, with its norm and perhaps a pool."""
    kinds = (Kind.LINEAR, Kind.NORMALISATION, Kind.ROUTING, Kind.SELECTION)
    fine = all(facts(node).kind in kinds or (facts(node).kind is Kind.POINTWISE and _scales(node)) for node in way)
    return fine and sum(_is_layer(node) for node in way) == 1


def _is_layer(node: fx.Node) -> bool:
    return facts(node).parametric
