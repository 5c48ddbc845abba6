"""memory="low": values between joins are computed again, and nothing else changes."""

import pytest
import torch
from checks import assert_close
from torch import nn
from torchvision import models

import fxlrp
from fxlrp.errors import BackendError, RuleError
from fxlrp.passes.facts import KEY, Facts
from fxlrp.passes.optimize.recompute import kept_values


class Plain(nn.Sequential):
    """A stack without a join."""

    def __init__(self):
        layers = [layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.ReLU())]
        super().__init__(*layers, nn.Linear(6, 3))


class Shared(nn.Module):
    """A value from the beginning that is read at every depth, and by two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x):
        first = self.stem(x).relu()
        hidden = first
        for block in self.blocks:
            hidden = hidden + block(hidden).relu() * first
        return self.head(hidden)


def is_signal(node):
    return isinstance(node.meta.get(KEY), Facts) and node.meta[KEY].signal


def made(kind):
    torch.manual_seed(0)
    return kind().double().eval()


@pytest.mark.parametrize("preset", ["evidence", "conserving", "otsuki2024", "attnlrp"])
@pytest.mark.parametrize("kind", [Plain, Shared])
def test_relevance_is_the_same_to_the_last_bit(kind, preset):
    model, x = made(kind), torch.randn(5, 6, dtype=torch.float64)
    usual, low = fxlrp.compile(model, preset), fxlrp.compile(model, preset, memory="low")
    assert torch.equal(usual(x).relevance, low(x).relevance)
    assert torch.equal(usual(x, target=[0, 2]).relevance, low(x, target=[0, 2]).relevance)
    names = [node.name for node in usual.model_graph.nodes if node.op != "output"]
    explained = next(node for node in usual.model_graph.nodes if node.op == "output").args[0][0]
    kept = kept_values(usual.model_graph, explained)
    assert kept < set(names)
    assert len(list(low.graph.nodes)) > len(list(usual.graph.nodes))
    assert low.ledger(x).error.abs().max() <= 1e-12


def a_network(name):
    """A network of torchvision by name, or one of its families with few layers."""
    if name == "densenet":
        return models.DenseNet(growth_rate=8, block_config=(2, 3, 2), num_init_features=16, num_classes=7)
    if name == "swin":
        return models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=7)
    return models.get_model(name, weights=None, num_classes=7)


WHOLE = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "swin_t")]


@pytest.mark.parametrize("name", ["resnet18", "densenet", "swin", *WHOLE])
def test_networks_are_explained_alike(name):
    torch.manual_seed(0)
    model, x = a_network(name).eval(), torch.randn(2, 3, 64, 64)
    usual, low = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "conserving", memory="low")
    assert torch.equal(usual(x, target=3).relevance, low(x, target=3).relevance)


def test_each_value_is_computed_twice_at_most_and_what_comes_last_once():
    explainer = fxlrp.compile(made(Shared), memory="low")
    forward = [node for node in explainer.graph.nodes if is_signal(node)]
    layers = [str(node.args[1]) for node in forward if "linear" in str(node.target)]
    counts = {name: layers.count(name) for name in layers}
    assert max(counts.values()) == 2
    assert counts["head_weight"] == 1


def test_less_is_held_at_once():
    """Counted in values: the most that are alive together, as the program frees what nobody reads any more."""

    def most(explainer):
        graph = explainer.graph
        ends = {source: node for node in graph.nodes for source in node.all_input_nodes}
        alive, highest = set(), 0
        for node in graph.nodes:
            if node.op == "call_function" and is_signal(node):
                alive.add(node)
            highest = max(highest, len(alive))
            alive -= {source for source in node.all_input_nodes if ends[source] is node}
        return highest

    blocks = [models.resnet.BasicBlock(4, 4) for _ in range(12)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 3)).double().eval()
    usual, low = fxlrp.compile(model), fxlrp.compile(model, memory="low")
    assert most(low) < 0.6 * most(usual)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    assert_close(low(x).relevance, usual(x).relevance)


def test_other_words_and_backends_that_hold_what_they_like_are_refused():
    with pytest.raises(RuleError, match="memory='high': give 'low'"):
        fxlrp.compile(made(Plain), memory="high")
    with pytest.raises(BackendError, match="memory='low' is for backend='eager'"):
        fxlrp.compile(made(Plain), memory="low", backend="inductor")
