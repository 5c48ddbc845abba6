"""``batch=None``: all inputs together are one item, as the nodes and edges of a graph are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, ExportError, InputError, TargetError

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 6], [1, 2, 0, 4, 5, 3, 2, 6]])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 1])
PRESETS = ("conserving", "evidence", "attnlrp", "epsilon")


class GraphNet(nn.Module):
    """Two rounds of messages along weighted edges; a class for each graph, or for each node."""

    def __init__(self, pooled: bool = True):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.pooled = pooled

    def forward(self, x, edge_index, edge_weight, groups=None):
        x = F.relu(self.round(self.first(x), edge_index, edge_weight))
        x = F.relu(self.round(self.second(x), edge_index, edge_weight)) + x
        if self.pooled:
            x = torch.zeros(int(groups.max()) + 1, 8, dtype=x.dtype).index_add(0, groups, x)
        return self.head(x)

    def round(self, x, edge_index, edge_weight):
        messages = x[edge_index[0]] * edge_weight[:, None]
        return x.new_zeros(x.shape).index_add(0, edge_index[1], messages)


def graph(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, generator=generator, dtype=dtype), EDGES, torch.rand(8, generator=generator, dtype=dtype)


def net(pooled=True):
    torch.manual_seed(0)
    return GraphNet(pooled).double().eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_relevance_of_nodes_and_edges_is_what_started(preset):
    explainer = fxlrp.compile(net(), preset, batch=None)
    explanation = explainer(*graph(), GROUPS)
    of = explanation.by_input
    assert {name: tuple(part.shape) for name, part in of.items()} == {
        "x": (7, 4), "edge_index": (2, 8), "edge_weight": (8,), "groups": (7,),
    }  # fmt: skip
    assert explanation.start.shape == explanation.target.shape == (2,)  # one a graph
    assert bool(of["edge_weight"].abs().sum() > 0)
    assert not of["edge_index"].any()  # the edges are structure
    ledger = explainer.ledger(*graph(), GROUPS)
    assert ledger.start.shape == (1,)
    assert float(ledger.error.abs().max()) < 1e-9 * float(ledger.start.abs())
    arrived = sum(float(part.sum()) for part in of.values())
    assert arrived == pytest.approx(float(ledger.relevance), abs=1e-12)
    if preset in ("conserving", "evidence"):
        assert arrived == pytest.approx(float(explanation.start.sum()), abs=1e-9)


def test_a_batch_of_graphs_gives_what_its_graphs_give():
    explainer = fxlrp.compile(net(), "conserving", batch=None)
    x, edges, weights = graph()
    inside = GROUPS[edges[0]] == GROUPS[edges[1]]  # no edge between the graphs
    edges, weights = edges[:, inside], weights[inside]
    together = explainer(x, edges, weights, GROUPS)
    for number, first in ((0, 0), (1, 3)):
        nodes, own = number == GROUPS, GROUPS[edges[0]] == number
        groups = torch.zeros(int(nodes.sum()), dtype=torch.long)
        alone = explainer(x[nodes], edges[:, own] - first, weights[own], groups)
        torch.testing.assert_close(together.relevance[0][nodes], alone.relevance[0])
        torch.testing.assert_close(together.relevance[2][own], alone.relevance[2])
        torch.testing.assert_close(together.start[number : number + 1], alone.start)


def test_each_node_has_a_target():
    explainer = fxlrp.compile(net(pooled=False), "conserving", batch=None, start="logit")
    targets = torch.arange(7) % 3
    explanation = explainer(*graph(), target=targets)
    output = explanation.output
    torch.testing.assert_close(explanation.start, output.gather(1, targets[:, None])[:, 0])
    with pytest.raises(TargetError, match=r"\(7,\)"):
        explainer(*graph(), target=torch.tensor([1, 2]))
    one = fxlrp.compile(net(pooled=False), "conserving", batch=None, start="logit", output=lambda out: out[[2]])
    far = one(*graph(), target=1)
    assert far.start.shape == (1,)
    assert not far.relevance[0][3:6].any()  # no way leads from there to node 2


def test_several_targets_have_their_axis_in_front():
    explainer = fxlrp.compile(net(), "conserving", batch=None)
    several = explainer(*graph(), GROUPS, target=[0, 2], chunk=1)
    assert [tuple(part.shape) for part in several.relevance] == [(2, 7, 4), (2, 2, 8), (2, 8), (2, 7)]
    assert several.start.shape == (2, 2)
    for place, target in enumerate((0, 2)):
        torch.testing.assert_close(several.relevance[0][place], explainer(*graph(), GROUPS, target=target).relevance[0])


def test_other_sizes_need_no_other_explainer():
    explainer = fxlrp.compile(net(pooled=False), "conserving", batch=None)
    explainer(*graph())
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    explanation = explainer(torch.randn(4, 4).double(), edges, torch.rand(3).double())
    assert explanation.relevance[0].shape == (4, 4)
    assert len(explainer._engine._plans) == 1


class Energy(nn.Module):
    """One number for all nodes together."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x, edges):
        return (F.silu(self.layer(x[edges[0]] - x[edges[1]])).sum(0) @ self.head.weight[0]).squeeze()


def test_a_single_number_starts_as_it_is():
    torch.manual_seed(0)
    explanation = fxlrp.compile(Energy().double().eval(), "conserving", batch=None)(*graph()[:2])
    torch.testing.assert_close(explanation.start, explanation.output.reshape(1))
    torch.testing.assert_close(explanation.relevance[0].sum(), explanation.output)


def test_as_data_it_is_a_batch_of_one(tmp_path):
    pytest.importorskip("polars")
    explanation = fxlrp.compile(net(), batch=None)(*graph(), GROUPS)
    frame = explanation.to_frame()
    assert len(frame) == 1
    assert frame["sum"][0] == pytest.approx(float(explanation.start.sum()))
    assert "item 0" in repr(explanation)
    path = explanation.save(tmp_path / "graph.npz")
    again = fxlrp.Explanation.read(path)
    np.testing.assert_array_equal(again.to_frame()["relevance.x"][0], frame["relevance.x"][0])


def test_what_such_an_explainer_cannot_do_says_so(tmp_path):
    explainer = fxlrp.compile(net(pooled=False), batch=None)
    explainer(*graph())
    with pytest.raises(ExportError, match="batch=None"):
        explainer.save(tmp_path / "graph.pt2")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="batch=None"):
        fxlrp.smooth(explainer, graph()[0], additional_forward_args=graph()[1:])
    with pytest.raises(InputError, match=r"batch=-1: give the axis"):
        fxlrp.compile(net(), batch=-1)
    with pytest.raises(InputError, match=r"give compile\(…, batch=None\)"):
        fxlrp.compile(net(pooled=False))(*graph())


class ByKind(nn.Module):
    """A layer for each kind of node, of which a graph may have none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x, kinds):
        out = x.new_zeros(x.shape[0], 3)
        for kind, layer in enumerate(self.layers):
            rows = (kinds == kind).nonzero().view(-1)
            out = out.index_copy(0, rows, layer(x.index_select(0, rows)))
        return out


def test_a_layer_to_which_no_node_goes_has_a_row_of_nothing():
    torch.manual_seed(0)
    explainer = fxlrp.compile(ByKind().double().eval(), batch=None, start=lambda output, target: output.abs())
    x, kinds = torch.randn(6, 4).double(), torch.ones(6, dtype=torch.long)
    ledger = explainer.ledger(x, kinds)
    torch.testing.assert_close(explainer(x, kinds).relevance[0].sum()[None], ledger.start)
    assert float(ledger.error.abs().max()) < 1e-10


def test_degrees_may_be_counted_by_bincount():
    class Mean(GraphNet):
        def round(self, x, edge_index, edge_weight):
            source, sink = edge_index
            messages = x.new_zeros(x.shape).index_add(0, sink, x[source] * edge_weight[:, None])
            return messages / torch.bincount(sink, minlength=x.shape[0]).clamp(min=1)[:, None]

    model = Mean(pooled=False).double().eval()
    explainer = fxlrp.compile(model, "conserving", batch=None, start="logit")
    ledger = explainer.ledger(*graph())
    assert float(ledger.error.abs().max()) < 1e-9 * float(ledger.start.abs().max())
    assert torch.allclose(explainer(*graph()).output, model(*graph()))


MULTIPLIED = {
    "sparse.mm": torch.sparse.mm, "spmm": torch.spmm, "an operator": lambda matrix, x: matrix @ x,
    "sparse.addmm": lambda matrix, x: torch.sparse.addmm(x.tanh(), matrix, x, beta=0.5),
}  # fmt: skip


class Neighbours(nn.Module):
    """Messages by a product with a matrix that may be sparse; ``kept``: how it is kept."""

    def __init__(self, multiply, kept):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.multiply, self.kept = nn.Linear(4, 5), nn.Linear(5, 3), multiply, kept
        matrix = torch.zeros(7, 7).index_put((EDGES[1], EDGES[0]), torch.rand(8), accumulate=True).double()
        self.register_buffer("matrix", {"coo": matrix.to_sparse(), "csr": matrix.to_sparse_csr()}.get(kept, matrix))

    def forward(self, x, edges=None):
        matrix = self.matrix
        if self.kept == "made of edges":
            values = matrix[edges[1], edges[0]]
            matrix = torch.sparse_coo_tensor(edges.flip(0), values, (7, 7)).coalesce()
        return self.head(torch.relu(self.multiply(matrix, self.first(x))))


@pytest.mark.parametrize("kept", ["coo", "csr", "made of edges"])
@pytest.mark.parametrize("how", MULTIPLIED)
def test_a_sparse_matrix_is_as_the_dense_one(how, kept):
    x, edges, _ = graph()
    wanted, found = (
        fxlrp.compile(Neighbours(MULTIPLIED[how], form).double().eval(), "conserving", batch=None, start="logit")(
            x, *([edges] if form == "made of edges" else []), target=torch.zeros(7, dtype=torch.int64)
        )
        for form in ("dense", kept)
    )
    assert torch.allclose(found.output, wanted.output)
    assert torch.allclose(found.by_input["x"], wanted.by_input["x"])


class AsExported(nn.Module):
    """Computes something else while it is exported."""

    def forward(self, x, edges):
        if torch.compiler.is_exporting():
            x = x.relu()
        return x.new_zeros(x.shape).index_add(0, edges[1], x[edges[0]]) / len(edges[0])


def test_a_graph_that_cannot_be_read_is_not_read_for_ever():
    captured = fxlrp.capture(AsExported().eval())
    with pytest.raises(CaptureError, match="something else than the model"):
        fxlrp.compile(captured, batch=None)(torch.randn(7, 4), EDGES)
    assert captured.reads == 2  # for these sizes and others, and for these alone


class RelationNet(nn.Module):
    """A matrix for each kind of edge, all of them made of a few."""

    def __init__(self):
        super().__init__()
        self.shares, self.bases = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 4, 8))
        self.bias, self.head = nn.Parameter(torch.randn(2)), nn.Linear(8, 3)

    def forward(self, x, edges, kinds):
        table = torch.einsum("kb,bio->kio", self.shares, self.bases)
        messages = torch.einsum("ei,eio->eo", x[edges[0]], table[kinds]) + (self.shares @ self.bias)[kinds, None]
        return self.head(x.new_zeros(x.shape[0], 8).index_add(0, edges[1], messages))


@pytest.mark.parametrize("preset", ["evidence", "conserving"])
def test_tables_that_forward_makes_may_have_any_number_of_axes(preset):
    torch.manual_seed(0)
    model, given = RelationNet().eval(), (torch.randn(7, 4), EDGES, torch.tensor([0, 1, 2, 2, 1, 0, 0, 1]))
    explainer = fxlrp.compile(model, preset, batch=None)
    assert torch.allclose(explainer(*given).output, model(*given), atol=1e-5)
    ledger = explainer.ledger(*given)
    assert float(ledger.error.abs().max()) < 1e-5 * float(ledger.start.abs())
