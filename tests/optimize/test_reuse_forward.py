"""``reuse_forward``: a rule that takes the layer as it is divides by what the layer gave."""

import pytest
import torch
import torch.nn.functional as F
from optimize_checks import DOUBLE, assert_changes_nothing, assert_same, written
from optimize_nets import signed
from torch import nn

import fxlrp
from fxlrp.passes.facts import KEY
from fxlrp.rules import Epsilon


def test_epsilon_divides_by_the_output_of_the_layer():
    model, x = signed()
    preset = fxlrp.Preset("ε", linear=Epsilon(1e-3, bias="absorb"), batch_norm=fxlrp.rules.Fold())
    plain = fxlrp.compile(model, preset, optimize=False)
    reused = fxlrp.compile(model, preset, optimize=("reuse_forward",))
    assert len(written(plain, F.conv2d)) == 3
    assert len(written(plain, F.linear)) == 1
    assert not written(reused, F.conv2d, F.linear)
    assert_same(reused(x), plain(x))


@pytest.mark.parametrize("bias", ["ignore", "absorb"])
def test_a_rule_that_ignores_the_bias_computes_its_own_denominator(bias):
    model, x = signed()
    explainer = assert_changes_nothing(
        model, x, optimize=("reuse_forward",), preset=fxlrp.Preset("ε", linear=Epsilon(1e-3, bias=bias))
    )
    recomputed = {"signed", "known", "head"} if bias == "ignore" else set()
    found = {node.meta[KEY].node for node in written(explainer, F.conv2d, F.linear)}
    assert found - {"stem"} == recomputed


def test_padding_with_other_values_gives_the_same_explanation():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = F.pad(F.relu(self.stem(x)), (1, 1, 1, 1)) + 1
            return self.head(self.conv(x).mean((2, 3)))

    model = Padded().double().eval()
    preset = fxlrp.Preset("ε", linear=Epsilon(1e-3, bias="absorb"))
    assert_changes_nothing(model, torch.randn(2, 3, 8, 8, dtype=DOUBLE), optimize=("reuse_forward",), preset=preset)
