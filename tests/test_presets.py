"""Presets: what they hold is checked, and what each one does is what it says."""

import pytest
import torch
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from token_nets import WIDTH, Block, Fused, Tokens
from torch import nn

import fxlrp
from fxlrp.errors import RuleError
from fxlrp.rules import Epsilon, Gamma, Part, Winner, ZBox, ZPlus

NET = RandomNet(NetPlan([BlockPlan(), BlockPlan(skip="projection"), BlockPlan(skip="dense")])).double().eval()


def test_a_preset_takes_rules_of_the_right_family_only():
    with pytest.raises(RuleError, match=r"preset mine: linear=Winner\(\), and linear takes a LinearRule"):
        fxlrp.compile(NET, fxlrp.Preset("mine", linear=Winner()))
    with pytest.raises(RuleError, match="late=None, and late takes a LinearRule"):
        fxlrp.compile(NET, fxlrp.Preset("mine", late=(3, None)))
    with pytest.raises(RuleError, match="must be a rule of fxlrp"):
        fxlrp.compile(NET, fxlrp.Preset("mine", rules={"stem": 1}))


def test_the_first_convolution_may_have_a_rule_of_its_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    chosen = {row.node: row.rule for row in fxlrp.compile(model, "epsilon_gamma_box").summary()}
    assert [rule.partition("(")[0] for rule in chosen.values() if rule] == ["ZBox", "Pass", "Gamma", "Epsilon"]
    dense = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    chosen = {row.node: row.rule for row in fxlrp.compile(dense, "epsilon_gamma_box").summary()}
    assert [rule.partition("(")[0] for rule in chosen.values()] == ["Epsilon", "Pass", "Epsilon"]


@pytest.mark.parametrize(
    "bounds",
    [
        (-2.0, 3.0),
        ([-2.0, -1.0, -3.0], [1.0, 2.0, 3.0]),
        (torch.tensor([-2.0, -1.0, -3.0]).reshape(1, 3, 1, 1), torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)),
        (torch.tensor([-2.0, -1.0, -3.0]).reshape(1, 3, 1, 1).expand(2, 3, 6, 6), 3),
    ],
)
def test_a_box_has_one_bound_or_one_a_channel(bounds):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).double().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    weight = model[0].weight.detach()
    full = [torch.as_tensor(b, dtype=torch.float64) for b in bounds]
    low, high = (b if b.dim() > 1 else b.reshape(-1, 1, 1) for b in full)

    def conv(value, w):
        return torch.nn.functional.conv2d((value + torch.zeros_like(x)), w, padding=1)

    inputs = [x.clone().requires_grad_(), (low + 0 * x).requires_grad_(), (high + 0 * x).requires_grad_()]
    z = conv(inputs[0], weight) - conv(inputs[1], weight.clamp(min=0)) - conv(inputs[2], weight.clamp(max=0))
    relevance = torch.rand_like(z)
    grads = torch.autograd.grad(z, inputs, relevance / z.detach())
    expected = sum(value * grad for value, grad in zip(inputs, grads, strict=True)).detach()
    explainer = fxlrp.compile(model, fxlrp.Preset("box", linear=ZBox(*bounds)), start=lambda o, t: relevance)
    assert_close(explainer(x).relevance, expected)


def test_a_box_from_a_normalisation_is_that_of_its_pixels():
    box = ZBox.from_normalization([0.5, 0.4, 0.3], [0.1, 0.2, 0.4], pixels=(0, 255))
    assert torch.allclose(torch.tensor(box.low), torch.tensor([-5.0, -2.0, -0.75]))
    assert torch.allclose(torch.tensor(box.high), torch.tensor([2545.0, 1273.0, 636.75]))
    assert ZBox() == ZBox.from_normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZBox(0.0), "both bounds"),
        (lambda: ZBox(1.0, 0.0), "above the upper one"),
        (lambda: ZBox("a", "b"), "neither a number"),
        (lambda: ZBox(torch.rand(1, 3, 4, 4), 2.0), "varies within a channel"),
        (lambda: ZBox.from_normalization([0.5], [0.0]), "positive std"),
        (lambda: fxlrp.rules.AlphaBeta(2, 2), "alpha − beta = 1"),
        (lambda: Gamma(-1), "gamma must be zero or positive"),
        (lambda: fxlrp.rules.FixedSplit(1.5), "between 0 and 1"),
        (lambda: ZPlus(bias="keep"), "'ignore', 'absorb', 'share'"),
    ],
)
def test_parameters_that_mean_nothing_are_errors(make, message):
    with pytest.raises(RuleError, match=message):
        make()


def test_bounds_that_do_not_fit_the_layer_are_an_error_when_compiling():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    with pytest.raises(RuleError, match="bounds for 3 channels, and the layer takes 1"):
        fxlrp.compile(model, "epsilon_gamma_box")


def test_gamma_is_epsilon_at_zero_and_nears_z_plus():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).double().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        relevance = model(x).clamp(min=0)

    def map_of(rule):
        preset = fxlrp.Preset("one rule", linear=rule)
        return fxlrp.compile(model, preset, start=lambda o, t: relevance)(x).relevance

    assert_close(map_of(Gamma(0, stabilizer=1e-6)), map_of(Epsilon(1e-6)))
    assert_close(map_of(Gamma(1e9, stabilizer=1e-9)), map_of(ZPlus(vanishing="absorb")), 1e-6)


def test_a_rule_of_ones_own_is_a_few_lines():
    class OnlyPositiveInputs(fxlrp.rules.LinearRule):
        """The example of docs/design.md."""

        def parts(self, layer):
            return [Part(layer.term(fxlrp.rules.positive(layer.x), fxlrp.rules.positive), layer.bias)]

    model, x = nn.Sequential(nn.Linear(5, 4)).double().eval(), torch.rand(3, 5, dtype=torch.float64) - 0.1
    nn.init.uniform_(model[0].weight, -0.2, 1)  # no output without a positive contribution
    relevance = torch.rand(3, 4, dtype=torch.float64)
    explainer = fxlrp.compile(model, fxlrp.Preset("own", linear=OnlyPositiveInputs()), start=lambda o, t: relevance)
    contributions = model[0].weight.detach().clamp(min=0) * x.clamp(min=0)[:, None, :]
    expected = (contributions * (relevance / contributions.sum(2))[..., None]).sum(1)
    assert_close(explainer(x).relevance, expected)


@pytest.mark.parametrize(
    "preset", ["evidence", "conserving", "conserving_gamma", "epsilon", "epsilon_plus", "epsilon_plus_flat",
               "epsilon_alpha2_beta1", fxlrp.presets.epsilon_gamma_box(-8, 8)],
)  # fmt: skip
def test_signed_sums_stay_bounded_along_a_transformer(preset):
    """Were relevance handed on unchanged at norms, those of the ε composites would grow to 2 · 10⁴ times the start."""
    torch.manual_seed(0)
    model = Tokens(*(Block(Fused()) for _ in range(8)), token=True).double().eval()
    x = torch.randn(4, 6, WIDTH, dtype=torch.float64)
    relevance = fxlrp.compile(model, preset, start="one")(x).relevance
    assert relevance.abs().flatten(1).sum(1).max() < 20
