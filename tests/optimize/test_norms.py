"""``fold_norms``: a batch norm behind a convolution becomes a part of it, also on the way forward."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from checks import assert_close, tolerance
from hypothesis import given
from hypothesis_profiles import examples
from optimize_checks import DOUBLE, assert_changes_nothing, assert_leaves_tokens_alone, explained
from optimize_nets import seeded_weights
from stacks import LayerPlan, StackPlan, stack, stack_plans
from torch import nn

from fxlrp.passes.optimize import FOLD_NORMS

aten = torch.ops.aten


def test_a_norm_behind_a_convolution_is_folded():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.first, self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = F.relu(self.first(self.a(x)))
            read = self.b(x)  # once more, beside the norm
            return self.head((self.third(F.relu(self.second(read))) + read).mean((2, 3)))

    model, x = seeded_weights(Norms()).double(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    state = copy.deepcopy(model.state_dict())
    explainer = assert_changes_nothing(model, x, optimize=(FOLD_NORMS,))
    left = [node.name for node in explainer.graph.nodes if node.target is aten.batch_norm.default]
    assert left == ["second", "third"]
    assert_close(explainer(x).output, model(x).detach(), 1e-12)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_norm_without_scale_is_folded():
    layers = [LayerPlan((3, 3), (1, 1), (1, 1), (1, 1), bias=bias, norm=True) for bias in (True, False)]
    model, x = stack(StackPlan((8, 8), layers))
    norms = [i for i, layer in enumerate(model.layers) if isinstance(layer, nn.BatchNorm2d)]
    for i in norms:
        model.layers[i] = seeded_weights(nn.BatchNorm2d(model.layers[i].num_features, affine=False)).double()
    explainer = assert_changes_nothing(model, x, optimize=(FOLD_NORMS,))
    assert not [node for node in explainer.graph.nodes if node.target is aten.batch_norm.default]
    assert_close(explainer(x).output, model(x).detach(), 1e-12)


@examples(fast=6, slow=100)
@given(stack_plans())
def test_folded_norms_change_the_output_by_no_more_than_rounding(plan):
    plan = replace(plan, layers=[replace(layer, norm=True) for layer in plan.layers])
    for dtype in (DOUBLE, torch.float32):
        model, x = stack(plan, dtype)
        assert_close(explained(model, x, optimize=(FOLD_NORMS,)).output, model(x).detach(), tolerance(dtype))


def test_a_network_without_batch_norms_is_left_alone():
    assert_leaves_tokens_alone(FOLD_NORMS)
