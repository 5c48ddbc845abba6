"""Where the time of an explanation goes: by kind of node, in the forward pass and in relevance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fxlrp.common.text_tables import table
from fxlrp.passes.facts import Facts, facts
from fxlrp.runtime.timing import Spent, Step
from fxlrp.vocabulary import Kind

POOLING = "pooling"
"""The kind of all that pools, resizes or sums."""

WEIGHTS = "weights"
"""The kind of what belongs to no node: seeing whether weights changed, and what is made of them where they did."""


@dataclass(frozen=True)
class ProfileRow:
    """A node in the forward pass, or the propagation of its relevance.

    Attributes:
        node: the forward node, by name; ``""`` for weights.
        kind: ``"convolution"``, ``"linear"``, ``"pooling"`` (and what resizes or sums), ``"weights"``, or the
            node's :class:`~fxlrp.vocabulary.Kind`.
        relevance: whether it is the propagation of its relevance.
        products: milliseconds in convolutions and matrix products.
        rest: milliseconds in all else.
    """

    node: str
    kind: str
    relevance: bool
    products: float
    rest: float

    @property
    def milliseconds(self) -> float:
        """Of both."""
        return self.products + self.rest


@dataclass(frozen=True)
class Profile:
    """The rows of all nodes, in the order in which they run; as text a table by kind."""

    rows: Sequence[ProfileRow]

    def __iter__(self) -> Iterator[ProfileRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def milliseconds(self) -> float:
        """Of all nodes."""
        return sum(row.milliseconds for row in self.rows)

    @property
    def kinds(self) -> dict[str, tuple[Spent, Spent]]:
        """By kind what the forward pass takes, and what relevance takes; the most first."""
        sums: defaultdict[str, list[list[float]]] = defaultdict(lambda: [[0.0, 0.0], [0.0, 0.0]])
        for row in self.rows:
            part = sums[row.kind][row.relevance]
            part[0] += row.products
            part[1] += row.rest
        found = {kind: (Spent(*forward), Spent(*relevance)) for kind, (forward, relevance) in sums.items()}
        return dict(sorted(found.items(), key=lambda one: -sum(part.total for part in one[1])))

    def __str__(self) -> str:
        columns = ("kind", "nodes", "forward ms", "relevance ms", "of it products", "share")
        counts: defaultdict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            counts[row.kind].add(row.node)
        lines = [self._line(kind, len(counts[kind]), *parts) for kind, parts in self.kinds.items()]
        sums = [Spent(*map(sum, zip(*parts, strict=True))) for parts in zip(*self.kinds.values(), strict=True)]
        return table(columns, [*lines, self._line("all", sum(map(len, counts.values())), *sums)])

    def __repr__(self) -> str:
        return f"<Profile of {len(self.rows)} steps, {self.milliseconds:.4g} ms>"

    def _line(self, kind: str, nodes: int, forward: Spent, relevance: Spent) -> tuple[str, ...]:
        share = (forward.total + relevance.total) / self.milliseconds
        times = (f"{forward.total:.2f}", f"{relevance.total:.2f}", f"{relevance.products:.2f}")
        return (kind, str(nodes), *times, f"{share:.1%}")


def profiled(forward: fx.Graph, times: Mapping[Step, Spent]) -> Profile:
    """The profile of what was measured.

    Args:
        forward: the model's graph, with the facts of its nodes.
        times: of the steps of its relevance graph.
    """
    kinds = {node.name: kind_of(facts(node)) for node in forward.nodes if node.op != "output"}
    found = ((step, kinds.get(step.node, WEIGHTS), spent) for step, spent in times.items())
    return Profile([ProfileRow(step.node, kind, step.relevance, *spent) for step, kind, spent in found])


def kind_of(node_facts: Facts) -> str:
    """What a node is called in a profile: linear operations are told apart by what they cost."""
    operation = node_facts.operation
    if node_facts.kind is Kind.SELECTION:
        return POOLING
    if node_facts.kind is not Kind.LINEAR or operation is None:
        return str(node_facts.kind)
    if operation.name.startswith("conv"):
        return "convolution"
    return "linear" if node_facts.parametric or operation.name in ("matmul", "einsum") else POOLING
