"""What methods cost on grids: in every round they take turns, each between two forward passes."""

import torch
from torch import nn

from examples.evaluation.costs import SLOW_ROUNDS, ratios


def test_methods_take_turns_between_forward_passes():
    calls = []

    class Model(nn.Module):
        def forward(self, inputs):
            calls.append("forward")
            return inputs @ torch.ones(256, 256)

    def method(name):
        return lambda inputs, targets: calls.append(name)

    methods = {"a": method("a"), "b": method("b")}
    found = list(ratios(Model(), methods, torch.ones(256, 256), torch.tensor([0]), rounds=2))
    one_round = ["forward", "forward", "forward", "a", "forward", "b", "forward"]  # the placebo is one, too
    assert calls == one_round * 3  # the first round warms up
    assert [name for name, _ in found] == ["placebo", "a", "b"] * 2
    assert all(ratio > 0 for _, ratio in found)


def test_slow_methods_take_fewer_turns():
    model, calls = nn.Identity(), []

    def slow(inputs, targets):
        calls.append(None)
        for _ in range(1000):
            inputs @ inputs

    found = list(ratios(model, {"slow": slow}, torch.ones(64, 64), torch.tensor([0]), rounds=9))
    assert len(calls) == SLOW_ROUNDS
    assert [name for name, _ in found].count("slow") == SLOW_ROUNDS
    assert [name for name, _ in found].count("placebo") == 9
