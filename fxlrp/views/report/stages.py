"""The stages of a model: values that everything flows through and that are maps, from the image to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fxlrp.maps.heatmap import map_size
from fxlrp.passes.facts import facts
from fxlrp.passes.joins import dominators
from fxlrp.vocabulary import Kind

_MOST = 8


@dataclass(frozen=True)
class Stage:
    """A value inside the model.

    Attributes:
        node: the name of the node that makes it.
        path: the module that the node belongs to.
        shape: of the value, without the batch.
    """

    node: str
    path: str
    shape: tuple[int, ...]


def choose_stages(graph: fx.Graph, shapes: Mapping[str, Sequence[int]], size: Sequence[int]) -> list[Stage]:
    """A few stages, in the order in which relevance passes them.

    All of the relevance passes each of them: the value dominates the output. Of the maps of one size the last is
    taken; where that leaves room, joins are put in between, evenly.

    Args:
        graph: the model's own, of an explainer.
        shapes: of the values of forward nodes, by name.
        size: height and width of the picture.
    """
    signal = [node for node in graph.nodes if node.op != "output" and facts(node).signal]
    height, width = size
    found: list[tuple[Stage, tuple[int, int], bool]] = []
    for node in reversed(_through(signal)):
        node_facts = facts(node)
        shape = tuple(shapes.get(node.name, ()))[1:]
        grid = map_size(shape, height, width)
        if grid is not None and grid != (1, 1) and node_facts.kind is not Kind.INPUT and not node_facts.padded:
            found.append((Stage(node.name, node_facts.origin.path, shape), grid, node_facts.kind is Kind.JOIN))
    last = {grid: i for i, (_, grid, _) in enumerate(found)}
    chosen = set(sorted(last.values())[-_MOST:])
    others = [i for i, (_, _, join) in enumerate(found) if join and i not in chosen]
    room = min(_MOST - len(chosen), len(others))
    chosen |= {others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room)}
    return [found[i][0] for i in sorted(chosen, reverse=True)]


def _through(signal: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes on every way to the last one, from there back."""
    above = dominators(signal)
    node: fx.Node | None = signal[-1]
    found = []
    while node is not None:
        found.append(node)
        node = above[node]
    return found
