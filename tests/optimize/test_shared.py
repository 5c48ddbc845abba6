"""``share_steps``: what two rules, or two calls of a layer, compute alike is computed once."""

from operator import getitem

import pytest
import torch
import torch.nn.functional as F
from nets import BlockPlan, NetPlan
from optimize_checks import DOUBLE, assert_changes_nothing, assert_same, written
from optimize_nets import SMALL, random_net
from torch import fx, nn

import fxlrp
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize import shared
from fxlrp.steps import primitives


def test_a_step_of_two_rules_is_computed_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(F.relu(self.conv(F.relu(self.stem(x)))))
            return self.head(x.mean((2, 3)))

    model, x = Shared().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    plain = fxlrp.compile(model, "conserving", optimize=False)
    shared = fxlrp.compile(model, "conserving", optimize=("share_steps",))

    def parts_of_conv(explainer):
        weights = {node for node in explainer.graph.nodes if node.target == "conv.weight"}
        parts = written(explainer, primitives.positive, primitives.negative)
        return sorted(node.target.__name__ for node in parts if node.args[0] in weights)

    assert parts_of_conv(plain) == ["negative", "negative", "positive", "positive"]
    assert parts_of_conv(shared) == ["negative", "positive"]
    assert_same(shared(x), plain(x))


def test_steps_with_arguments_of_other_types_stay_apart():
    # Equal numbers of different types: 1 + x is not True + x where x counts.
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta[KEY] = Emitted("", "", "step")
    new = []
    for second in (1, 1.0, True, 1, [1, 2], (1, 2), [1, 2], slice(1), slice(1)):
        node = graph.call_function(getitem, (x, second))
        node.meta[KEY] = Emitted("", "", "step")
        new.append(node)
    graph.output(new)
    module = shared.ShareSteps()(fx.GraphModule(nn.Module(), graph))
    (result,) = next(node for node in module.graph.nodes if node.op == "output").args
    places = [new.index(node) for node in result]
    assert places == [0, 1, 2, 0, 4, 5, 4, 7, 7]


def test_merging_different_steps_is_noticed(monkeypatch):
    monkeypatch.setattr(shared, "_key", lambda value: len(value))  # as if calls with as many arguments were alike
    model, x = random_net(NetPlan([BlockPlan(), *SMALL.blocks]))
    with pytest.raises((AssertionError, RuntimeError)):
        assert_changes_nothing(model, x, optimize=("share_steps",))
