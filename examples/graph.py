"""Which nodes and edges of a graph a decision rests on, where the truth is known.

    python -m examples.graph

Graphs of 20 nodes grow at random, each new node tied to one before it. One node is red, one is blue, the others are
green or yellow. A small graph network learns in seconds on one core to tell whether an edge ties red to blue; so the
truth is that edge and its two ends. ``batch=None`` makes one item of all inputs: nodes, edges and their weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxlrp

NODES, COLOURS = 20, 4
RED, BLUE = 0, 1
TRAINING, TESTING, STEPS = 400, 100, 300


class Graphs(NamedTuple):
    """Graphs side by side, as one.

    The colours of nodes (nodes, colours), edges in both directions (2, edges), which graph each node is of,
    (nodes,), and the class of each graph, (graphs,): 1 where red is tied to blue.
    """

    nodes: Tensor
    edges: Tensor
    graphs: Tensor
    classes: Tensor


def grown(count: int, generator: torch.Generator) -> Graphs:
    """Graphs, about half of each class."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    edges: list[tuple[int, int]] = []
    classes = torch.randint(2, (count,), generator=generator)
    colours = torch.randint(2, COLOURS, (count, NODES), generator=generator)
    for graph, tied in enumerate(classes.tolist()):
        pairs = [(node, below(node)) for node in range(1, NODES)]
        both = {*pairs, *((b, a) for a, b in pairs)}
        red, blue = pairs[below(len(pairs))]
        while not tied and ((red, blue) in both or red == blue):
            red, blue = below(NODES), below(NODES)
        colours[graph, red], colours[graph, blue] = RED, BLUE
        edges += [(graph * NODES + a, graph * NODES + b) for a, b in sorted(both)]
    nodes = F.one_hot(colours.flatten(), COLOURS).float()
    return Graphs(nodes, torch.tensor(edges).T, torch.arange(count * NODES) // NODES, classes)


class GraphNet(nn.Module):
    """Two rounds of messages (GIN, Xu et al., ICLR 2019), and a class for each graph."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [COLOURS, width]
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for before in widths
        )
        self.head = nn.Linear(width, 2)

    def forward(self, nodes: Tensor, edges: Tensor, weights: Tensor, graphs: Tensor) -> Tensor:
        """The logits, (graphs, classes), of nodes tied by edges of these weights, (edges,)."""
        for update in self.rounds:
            messages = nodes[edges[0]] * weights[:, None]
            nodes = update(nodes.index_add(0, edges[1], messages))
        sums = nodes.new_zeros(int(graphs.max()) + 1, nodes.shape[1])
        return self.head(sums.index_add(0, graphs, nodes))


def trained(data: Graphs, steps: int = STEPS) -> GraphNet:
    """A network that tells whether red is tied to blue."""
    torch.manual_seed(0)
    model = GraphNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    weights = torch.ones(data.edges.shape[1])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.nodes, data.edges, weights, data.graphs), data.classes)
        loss.backward()
        optimizer.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, explain, and compare with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training (default: %(default)s)")
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    data, unseen = grown(TRAINING, generator), grown(TESTING, generator)
    model = trained(data, options.steps)

    explainer = fxlrp.compile(model, batch=None)
    weights = torch.ones(unseen.edges.shape[1])
    explanation = explainer(unseen.nodes, unseen.edges, weights, unseen.graphs, target=unseen.classes)
    right = explanation.output.argmax(1) == unseen.classes
    print(f"accuracy on {TESTING} unseen graphs: {100 * right.float().mean():.0f} %")
    start = explanation.start
    print(f"relevance that entered, one start a graph: {tuple(start.shape)}, Σ {start.sum():.2f}")
    for name in ("nodes", "weights"):
        relevance = explanation.by_input[name]
        print(f"relevance of {name} {tuple(relevance.shape)}: Σ {relevance.sum():.2f}")
    ends = unseen.nodes[unseen.edges][..., [RED, BLUE]].sum(0)  # (edges, 2): how many ends are red, and blue
    truth = ends.prod(1) > 0
    of_edges, found = explanation.by_input["weights"], []
    for graph in (right & (unseen.classes == 1)).nonzero().flatten().tolist():
        own = unseen.graphs[unseen.edges[0]] == graph
        found.append(truth[own][of_edges[own].argmax()].float())
    print(f"the edge named most ties red to blue in {100 * torch.stack(found).mean():.0f} % of {len(found)} graphs "
          f"(chance {100 / (NODES - 1):.0f} %)")  # fmt: skip


if __name__ == "__main__":
    main()
