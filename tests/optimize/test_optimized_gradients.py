"""Whatever is asked of the optimiser, gradients of relevance and ledgers stay the same."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import by_profile, examples
from optimize_checks import CHOICES, DOUBLE, SEEDS, chosen_preset, explained
from optimize_nets import network_for, random_net, tour
from strategies import net_plans
from torch import nn

import fxlrp
from fxlrp.passes.optimize import NAMES


def gradients(model, x, optimize, preset="conserving", **options):
    """Relevance, and the gradients of its weighted sum by the input and by every parameter."""
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=optimize, differentiable=True, **options)
    x = x.clone().requires_grad_()
    relevance = explainer(x, target=torch.zeros(len(x), dtype=torch.long)).relevance
    assert relevance.grad_fn is not None
    weights = torch.linspace(0.5, 1.5, relevance.numel(), dtype=relevance.dtype).reshape(relevance.shape)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = (weights * relevance).sum()
    return relevance.detach(), torch.autograd.grad(whole, [x, *parameters], materialize_grads=True)


def assert_same_gradients(model, x, optimize=True, **options):
    relevance, expected = gradients(model, x, False, **options)
    got, found = gradients(model, x, optimize, **options)
    assert_close(got, relevance, 1e-12)
    largest = max(gradient.abs().max() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * largest


@pytest.mark.parametrize("preset", [
    "conserving", "epsilon_plus", "attnlrp",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("otsuki2024", "epsilon_gamma_box")),
])  # fmt: skip
def test_every_preset_has_the_same_gradients(preset):
    model, x = network_for(preset)
    if preset != "attnlrp":
        x[1] += 1  # an ε rule is as steep as 1/ε where nothing is there
    assert_same_gradients(model, x, NAMES, preset=preset)


@pytest.mark.parametrize("trained", ["head", "stem", "twice"])
def test_gradients_of_some_of_the_weights_are_the_same(trained):
    model, x = tour()
    model.requires_grad_(False)
    model.get_submodule(trained).requires_grad_(True)
    assert_same_gradients(model, x[:1])


class TwoActivations(nn.Module):
    """``first`` and ``second`` of one value, added; or ``second`` of ``first``."""

    def __init__(self, first, second, nested):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.first, self.second, self.nested = first, second, nested

    def forward(self, x):
        x = self.stem(x)
        x = self.second(self.first(x)) if self.nested else self.first(x) + self.second(x)
        return self.head(x.mean((2, 3)))


ACTIVATIONS = {
    "relu of what silu reads": (F.silu, F.relu, False),
    "relu of what gelu reads": (F.gelu, F.relu, False),
    "sigmoid of a tanh": (torch.tanh, torch.sigmoid, True),
    "sigmoid of a relu": (F.relu, torch.sigmoid, True),
    "tanh of a sigmoid": (torch.sigmoid, torch.tanh, True),
    "a rising slope": (lambda x: F.leaky_relu(x, -0.1), F.relu, True),
    "relu twice": (F.relu, F.relu, True),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_that_autograd_keeps_are_not_written_to(name):
    model = TwoActivations(*ACTIVATIONS[name]).double().eval()
    assert_same_gradients(model, torch.randn(2, 3, 8, 8, dtype=DOUBLE), start="logit")


def test_values_kept_for_a_trained_norm_are_not_written_to():
    # Autograd keeps what the norm reads, for the norm's scale; nothing before it is trained.
    model = TwoActivations(nn.BatchNorm2d(4), nn.ReLU(), nested=False).double().eval()
    model.stem.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    found = []
    for optimize in (False, True):
        explainer = fxlrp.compile(model, "conserving", optimize=optimize, differentiable=True, start="logit")
        whole = explainer(x, target=0).relevance.square().sum()
        found.append(torch.autograd.grad(whole, [model.first.weight, model.head.weight]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 1e-9)


@examples(fast=3, slow=100)
@given(net_plans(), st.sampled_from(by_profile(fast=[True], slow=list(CHOICES.values()))), SEEDS)
def test_random_networks_have_the_same_gradients(plan, optimize, seed):
    assert_same_gradients(*random_net(plan, seed), optimize, start="logit")


def test_no_gradient_is_recorded_unless_differentiable():
    model, x = tour()
    assert not explained(model, x.requires_grad_(), optimize=NAMES).relevance.requires_grad


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "attnlrp"])
def test_the_ledger_is_the_same(preset):
    model, x = network_for(preset)
    plain = fxlrp.compile(model, chosen_preset(preset), optimize=False).ledger(x)
    ledger = fxlrp.compile(model, chosen_preset(preset), optimize=NAMES).ledger(x)
    scale = plain.start.abs() + torch.stack([row.received.abs() for row in plain]).amax(0)
    for row, expected in zip(ledger, plain, strict=True):
        assert (row.node, row.path, row.kind, row.rule) == (expected.node, expected.path, expected.kind, expected.rule)
        assert row.by_reason.keys() == expected.by_reason.keys()
        pairs = [(row.received, expected.received), (row.handed_on, expected.handed_on)]
        pairs += [(row.by_reason[reason], expected.by_reason[reason]) for reason in row.by_reason]
        for amount, known in pairs:
            assert ((amount - known).abs() <= 1e-12 * scale).all(), row.node
    assert ((ledger.relevance - plain.relevance).abs() <= 1e-12 * scale).all()


def test_an_optimised_explainer_conserves():
    model, x = tour()
    assert_conserves(fxlrp.compile(model, "conserving", optimize=NAMES), x)
