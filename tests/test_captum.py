"""Agreement with ``captum.attr.LRP`` on networks of the layers that it has rules for.

Captum runs a network twice: forward, changing weights as its rules say; then forward and backward with those weights
at the inputs of the first run, ``R_i = x_i Σ_j w'_ji R_j / (z'_j + ε sign z'_j)``, sign(0) = +1. What is ``w'``, and
what is ``z'``, says which rule of fxlrp it is:

- ``EpsilonRule``: w, and b in z: ``Epsilon(ε, bias="absorb")``. It is also what pools, sums and batch norm run:
  ``Norm``, ``Winner`` (whose quotient is one but for ε), ``SignedSplit``, ``NormEpsilon``.
- ``GammaRule``: ``w + γ w⁺``, and b unchanged: ``Gamma(γ, generalized=False)``, which treats a bias as it does
  weights, ``b + γ b⁺``, and so is the same for a bias that is not positive, or that both leave out.
- ``Alpha1_Beta0_Rule``: w⁺ at x of any sign, and all of b: ``ZPlus(signed_bias=True)`` for x that is nowhere negative.
- ``IdentityRule``: ``Pass``.

Relevance starts with the logit.
"""

import pytest
import torch
from checks import assert_close
from seeded import seeded, seeded_normal
from torch import nn

import fxlrp
from fxlrp.rules import Epsilon, Gamma, Norm, NormEpsilon, Pass, SignedSplit, Winner, ZPlus

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
NEAR = 1e-10
EPSILON = 1e-9
"""Captum's own."""
TARGETS = torch.tensor([1, 3])


@pytest.fixture
def captum():
    pytest.importorskip("captum")
    from captum.attr._utils import lrp_rules

    return lrp_rules


class Net(nn.Module):
    """A sequential network of convolutions and linear layers."""

    def __init__(self, pool, *, bias=True):
        super().__init__()
        self.conv1, self.relu1, self.pool = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), pool
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, stride=2, bias=bias), nn.ReLU()
        self.average, self.dropout = nn.AdaptiveAvgPool2d(2), nn.Dropout()
        self.fc1, self.relu3, self.fc2 = nn.Linear(32, 10, bias=bias), nn.ReLU(), nn.Linear(10, 5, bias=bias)

    def forward(self, x):
        x = self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))
        x = self.dropout(self.average(x).flatten(1))
        return self.fc2(self.relu3(self.fc1(x)))


LAYERS = ("conv1", "conv2", "fc1", "fc2")
POOLS = {"max": lambda: nn.MaxPool2d(2), "average": lambda: nn.AvgPool2d(3, stride=2)}
pools = pytest.mark.parametrize("pool", POOLS)
biases = pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])


def make(pool, *, bias=True):
    return seeded(Net(POOLS[pool](), bias=bias))


def images():
    return seeded_normal(2, 3, 11, 11, seed=1)


def captums(captum, model, x, **rules):
    """Captum's relevance; ``rules`` by layer, the others having captum's own."""
    from captum.attr import LRP

    for name, rule in rules.items():
        model.get_submodule(name).rule = rule
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            # Its quotient is z / (z + ε), which should be one.
            module.rule = captum.EpsilonRule(1e-30)
    return LRP(model).attribute(x, target=TARGETS).detach()


def explained(model, x, linear=None, **kinds):
    kinds = {
        "linear": linear or Epsilon(EPSILON, bias="absorb"), "pooling": Norm(EPSILON), "selection": Winner(),
        "split": SignedSplit(EPSILON), **kinds,
    }  # fmt: skip
    return fxlrp.compile(model, fxlrp.Preset("as captum", **kinds), start="logit")(x, TARGETS).relevance


@pools
@biases
@pytest.mark.parametrize("epsilon", [EPSILON, 1e-2])
def test_epsilon_is_captums(captum, pool, bias, epsilon):
    model, x = make(pool, bias=bias), images()
    found = explained(model, x, Epsilon(epsilon, bias="absorb"))
    rules = {layer: captum.EpsilonRule(epsilon) for layer in LAYERS}
    assert_close(found, captums(captum, model, x, **rules), NEAR)


@pools
@pytest.mark.parametrize("gamma", [0.25, 2.0])
def test_gamma_without_biases_is_captums(captum, pool, gamma):
    model, x = make(pool), images().abs()
    found = explained(model, x, Gamma(gamma, generalized=False, stabilizer=EPSILON))
    rules = {layer: captum.GammaRule(gamma, set_bias_to_zero=True) for layer in LAYERS}
    assert_close(found, captums(captum, model, x, **rules), NEAR)


@pools
def test_gamma_with_biases_that_are_not_positive_is_captums(captum, pool):
    model, x = make(pool), images()
    with torch.no_grad():
        for layer in LAYERS:
            model.get_submodule(layer).bias.abs_().neg_()
    found = explained(model, x, Gamma(0.25, generalized=False, stabilizer=EPSILON, bias="absorb"))
    assert_close(found, captums(captum, model, x, **{layer: captum.GammaRule(0.25) for layer in LAYERS}), NEAR)


@pools
@pytest.mark.parametrize("ignored", [False, True], ids=["biases", "biases ignored"])
def test_alpha1_beta0_is_captums(captum, pool, ignored):
    model, x = make(pool), images().abs()
    bias = {"bias": "ignore"} if ignored else {"bias": "absorb", "signed_bias": True}
    found = explained(model, x, ZPlus(stabilizer=EPSILON, **bias))
    rules = {layer: captum.Alpha1_Beta0_Rule(set_bias_to_zero=ignored) for layer in LAYERS}
    assert_close(found, captums(captum, model, x, **rules), NEAR)


def test_alpha1_beta0_at_a_negative_input_is_a_rule_of_the_weights_sign(captum):
    """Captum's α1β0 keeps negative contributions, ``x⁻w⁺``; that of Bach et al. keeps the positive ``x⁻w⁻``."""
    layer, x = seeded(nn.Linear(6, 5, bias=False)), seeded_normal(2, 6)
    W = layer.weight.detach()
    z = layer(x).detach()[range(2), TARGETS]

    def share(c):  # contributions of each input to the one output
        return z[:, None] * c / c.sum(1, keepdim=True)

    expected = share(x * W[TARGETS].clamp(min=0))
    theirs = captums(captum, nn.Sequential(layer), x, **{"0": captum.Alpha1_Beta0_Rule()})
    assert_close(theirs, expected, 1e-7)
    assert_close(explained(nn.Sequential(layer).eval(), x, ZPlus()), share((x * W[TARGETS]).clamp(min=0)), NEAR)


@pools
def test_mixed_rules_are_captums(captum, pool):
    model, x = make(pool), images().abs()
    rules = {
        "conv1": Gamma(1.0, generalized=False, stabilizer=EPSILON), "conv2": ZPlus(stabilizer=EPSILON),
        "fc1": Epsilon(1e-3, bias="absorb"),
    }  # fmt: skip
    preset = fxlrp.Preset("mixed", linear=Epsilon(EPSILON, bias="absorb"), pooling=Norm(EPSILON), selection=Winner())
    found = fxlrp.compile(model, preset, rules=rules, start="logit")(x, TARGETS).relevance
    theirs = captums(
        captum, model, x, conv1=captum.GammaRule(1.0, set_bias_to_zero=True),
        conv2=captum.Alpha1_Beta0_Rule(set_bias_to_zero=True), fc1=captum.EpsilonRule(1e-3),
    )  # fmt: skip
    assert_close(found, theirs, NEAR)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(36, 5)

    def forward(self, x):
        return self.fc(self.relu(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("rule", ["IdentityRule", "EpsilonRule"])
def test_batch_norm_is_captums(captum, rule):
    model, x = seeded(Normed()), seeded_normal(2, 3, 5, 5)
    ours = {"IdentityRule": Pass(), "EpsilonRule": NormEpsilon(EPSILON)}[rule]
    theirs = captums(captum, model, x, norm=getattr(captum, rule)())
    assert_close(explained(model, x, batch_norm=ours), theirs, NEAR)


class Residual(nn.Module):
    """Additions as captum's own module, which stands for the operator."""

    def __init__(self, add):
        super().__init__()
        self.a, self.relu_a, self.b, self.relu_b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()
        self.add, self.head = add, nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu_a(self.a(x))
        return self.head(self.relu_b(self.add(self.b(x), x)))


def test_a_sum_is_captums(captum):
    from captum.attr._utils.custom_modules import Addition_Module

    model, x = seeded(Residual(Addition_Module())), seeded_normal(2, 6)
    assert_close(explained(model, x), captums(captum, model, x), NEAR)


def test_a_layer_that_is_called_twice_is_explained_here_and_refused_there(captum):
    layer = nn.Linear(5, 5)
    model, x = seeded(nn.Sequential(layer, nn.ReLU(), layer)), seeded_normal(2, 5)
    twin = nn.Sequential(layer, nn.ReLU(), seeded(nn.Linear(5, 5), 1)).double().eval()
    twin[2].load_state_dict(layer.state_dict())
    assert torch.equal(explained(model, x), explained(twin, x))
    with pytest.raises(RuntimeError, match="used more than once"):
        captums(captum, model, x)
