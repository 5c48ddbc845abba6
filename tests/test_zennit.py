"""Agreement with zennit: composites on whole networks, live and by stored maps; rules on single layers."""

import copy

import numpy as np
import oracle
import pytest
import torch
from checks import assert_close
from seeded import seeded, seeded_normal
from torch import nn
from zennit_nets import COMPOSITES, GOLDEN, NETS, TARGETS, digest, net, zennits

import fxlrp
from fxlrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Pass, SignedSplit, WSquare, ZBox, ZPlus

NEAR = 1e-10


def runs(*fast):
    """All composites on all networks, but for the fast ones in the long run alone."""
    every = [(name, composite) for name in NETS for composite in COMPOSITES]
    return pytest.mark.parametrize(
        ("name", "composite"),
        [pytest.param(*run, marks=[] if run in fast or run[0] in fast else [pytest.mark.slow]) for run in every],
    )


@pytest.fixture
def zennit():
    """The package, which needs Python 3.11.11."""
    return pytest.importorskip("zennit")


# Whole networks ------------------------------------------------------------------------------


@runs("resnet18", ("vgg11_bn", "epsilon_gamma_box"))
def test_a_preset_is_the_stored_map_of_zennits_composite(name, composite):
    model, x = net(name)
    found = digest(fxlrp.compile(model, composite, start="one")(x, TARGETS).relevance)
    with np.load(GOLDEN) as stored:
        wanted = {part: torch.from_numpy(stored[f"{name}/{composite}/{part}"]) for part in found}
    for part, value in found.items():
        assert value.shape == wanted[part].shape
        assert (value - wanted[part]).abs().max() <= NEAR * wanted["largest"], part


@runs(("resnet18", "epsilon_gamma_box"))
def test_a_preset_is_zennits_composite(zennit, name, composite):
    model, x = net(name)
    expected = zennits(name, composite, copy.deepcopy(model), x).detach()
    assert_close(fxlrp.compile(model, composite, start="one")(x, TARGETS).relevance, expected, NEAR)


# Rules on single layers ----------------------------------------------------------------------

LAYERS = {
    "linear": (lambda bias: nn.Linear(6, 5, bias=bias), (3, 6)),
    "linear over tokens": (lambda bias: nn.Linear(6, 5, bias=bias), (3, 4, 6)),
    "conv1d": (lambda bias: nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=bias), (3, 3, 9)),
    "conv2d": (lambda bias: nn.Conv2d(3, 4, 3, padding=1, bias=bias), (3, 3, 6, 6)),
    "conv2d strided": (lambda bias: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias), (3, 3, 7, 6)),
    "conv2d dilated": (lambda bias: nn.Conv2d(2, 3, 3, dilation=2, padding=2, bias=bias), (3, 2, 7, 7)),
    "conv2d grouped": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (3, 4, 5, 5)),
    "conv2d depthwise": (lambda bias: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=bias), (3, 4, 5, 5)),
    "conv_transpose2d": (lambda bias: nn.ConvTranspose2d(3, 4, 3, stride=2, bias=bias), (3, 3, 4, 4)),
}

PAIRS = {
    "epsilon": ("Epsilon", {"epsilon": 1e-2}, lambda bias: Epsilon(1e-2, bias=bias)),
    "lrp-0": ("Epsilon", {"epsilon": 0.0}, lambda bias: Epsilon(0, bias=bias)),
    "gamma": ("Gamma", {"gamma": 0.3, "stabilizer": 1e-2}, lambda bias: Gamma(0.3, stabilizer=1e-2, bias=bias)),
    "z-plus": ("ZPlus", {"stabilizer": 1e-2}, lambda bias: ZPlus(stabilizer=1e-2, bias=bias)),
    "alpha1 beta0": (
        "AlphaBeta", {"alpha": 1, "beta": 0, "stabilizer": 1e-2},
        lambda bias: AlphaBeta(1, 0, stabilizer=1e-2, bias=bias),
    ),
    "alpha2 beta1": (
        "AlphaBeta", {"alpha": 2, "beta": 1, "stabilizer": 1e-2},
        lambda bias: AlphaBeta(2, 1, stabilizer=1e-2, bias=bias),
    ),
    "w-square": ("WSquare", {"stabilizer": 1e-2}, lambda bias: WSquare(stabilizer=1e-2, bias=bias)),
    # zennit's flat rule never sees a bias; in its box rule the bias cancels out.
    "flat": ("Flat", {"stabilizer": 1e-2}, lambda bias: Flat(stabilizer=1e-2)),
    "box": ("ZBox", {"low": -4.0, "high": 3.0, "stabilizer": 1e-2}, lambda bias: ZBox(-4, 3, stabilizer=1e-2)),
}  # fmt: skip


def drawn(layer, bias=True):
    make, shape = LAYERS[layer]
    model = make(bias).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        return model, x, torch.randn_like(model(x))


def by_hook(module, hook, relevance, x):
    """What a rule of zennit's, a hook on ``module``, gives the input."""
    handle = hook.register(module)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(leaf), leaf, relevance)
    handle.remove()
    return found.detach()


def by_rule(module, relevance, x, **kinds):
    preset = fxlrp.Preset("one rule", **kinds)
    explainer = fxlrp.compile(nn.Sequential(module).eval(), preset, start=lambda output, target: relevance)
    return explainer(x).relevance


@pytest.mark.parametrize("policy", ["absorb", "ignore"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", PAIRS)
def test_a_rule_is_zennits(zennit, rule, layer, policy):
    from zennit import rules

    name, options, ours = PAIRS[rule]
    model, x, relevance = drawn(layer)
    if rule == "gamma" and policy == "ignore":
        # zennit leaves the bias out of the quotients, but not out of the sign that decides which of the two is
        # taken; fxlrp out of both. They are one rule where the bias does not turn the sign.
        z = model(x).detach()
        bias = model.bias.detach()
        without = z - (bias if isinstance(model, nn.Linear) else bias.reshape(-1, *[1] * (x.dim() - 2)))
        relevance = relevance * (z.sign() == without.sign())
    theirs = getattr(rules, name)(**options, zero_params=None if policy == "absorb" else "bias")
    assert_close(by_rule(model, relevance, x, linear=ours(policy)), by_hook(model, theirs, relevance, x), NEAR)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AvgPool2d(2), (2, 3, 4, 6)),
        (nn.AvgPool2d(3, stride=2, padding=1), (2, 3, 6, 5)),
        (nn.AdaptiveAvgPool2d((2, 3)), (2, 3, 5, 7)),
        (nn.AvgPool1d(3, stride=2), (2, 3, 7)),
    ],
)
def test_norm_is_zennits(zennit, pool, shape):
    from zennit import rules

    x = torch.randn(shape, dtype=torch.float64)
    relevance = torch.randn_like(pool(x))
    expected = by_hook(pool, rules.Norm(stabilizer=1e-2), relevance, x)
    assert_close(by_rule(pool, relevance, x, pooling=Norm(1e-2)), expected, NEAR)


def test_a_signed_split_is_zennits_norm_of_a_sum(zennit):
    from zennit import layer, rules

    class Add(nn.Module):
        def forward(self, x):
            return x[..., 0] + x[..., 1]

    x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    relevance = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = by_hook(layer.Sum(), rules.Norm(stabilizer=1e-2), relevance, x)
    assert_close(by_rule(Add(), relevance, x, split=SignedSplit(1e-2)), expected, NEAR)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.1)])
def test_pass_is_zennits(zennit, activation):
    from zennit import rules

    x, relevance = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = by_hook(activation, rules.Pass(), relevance, x)
    assert torch.equal(by_rule(activation, relevance, x, pointwise=Pass()), expected)


@pytest.mark.parametrize(
    ("preset", "name"), [("guided_backprop", "ReLUGuidedBackprop"), ("deconvnet", "ReLUDeconvNet")]
)
def test_gradients_at_a_relu_are_zennits(zennit, preset, name):
    from zennit import rules

    x, relevance = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = by_hook(nn.ReLU(), getattr(rules, name)(), relevance, x)
    explainer = fxlrp.compile(nn.Sequential(nn.ReLU()).eval(), preset, start=lambda output, target: relevance)
    assert_close(explainer(x).relevance, expected, NEAR)


# Where the two differ, and the dense matrices say who is right ---------------------------------

EPSILON = 1e-6
RULE = Epsilon(EPSILON, bias="absorb")


def attributed(model, x, relevance, *canonizers):
    """What the ε rule of zennit's gives the input, and the model's output while it is applied."""
    from zennit import rules, types
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum

    layers = [(types.Linear, rules.Epsilon(EPSILON)), (Sum, rules.Norm(EPSILON))]
    with LayerMapComposite(layers, canonizers=list(canonizers)).context(model) as modified:
        leaf = x.clone().requires_grad_()
        output = modified(leaf)
        (found,) = torch.autograd.grad(output, leaf, relevance)
    return found.detach(), output.detach()


def explained(model, x, relevance):
    preset = fxlrp.presets.epsilon(EPSILON, EPSILON)
    return fxlrp.compile(model, preset, start=lambda output, target: relevance)(x).relevance


def dense(layer, x, relevance):
    """The ε rule of a linear layer by its matrix."""
    W = layer.weight.detach()
    b = torch.zeros_like(W[:, 0]) if layer.bias is None else layer.bias.detach()
    return oracle.redistribute(RULE, W, b, x, relevance, torch.ones_like(W))


def seeded_linear(**options):
    return seeded(nn.Linear(4, 4, **options)).requires_grad_(False)


def signal_and_relevance():
    return seeded_normal(2, 3, 4)


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.relu = seeded_linear(), nn.ReLU()

    def forward(self, x):
        return self.fc(self.relu(self.fc(x)))


def test_a_layer_that_is_called_twice_knows_the_input_of_each_call(zennit):
    model = Repeated().eval()
    x, relevance = signal_and_relevance()
    h = model.relu(model.fc(x))
    behind = dense(model.fc, h, relevance)
    assert_close(explained(model, x, relevance), dense(model.fc, x, behind), NEAR)
    # A hook of zennit's holds one input a module: that of the last call, here taken for both.
    theirs, _ = attributed(model, x, relevance)
    assert_close(theirs, dense(model.fc, h, behind), NEAR)


class SumOfTwo(nn.Module):
    """``f(a) + f(b)``, the addition as the module that zennit has a rule for."""

    def __init__(self):
        super().__init__()
        from zennit.layer import Sum

        self.fc, self.sum = seeded_linear(), Sum()

    def forward(self, x):
        return self.sum(torch.stack([self.fc(x[:, :4]), self.fc(x[:, 4:])], dim=-1))


def test_two_calls_side_by_side_are_told_apart(zennit):
    model, x = SumOfTwo().eval(), seeded_normal(3, 8)
    relevance = seeded_normal(3, 4, seed=1)
    a, b = x[:, :4], x[:, 4:]
    shares = SignedSplit(EPSILON)(relevance, model.fc(a), model.fc(b)).operands
    expected = [dense(model.fc, part, share) for part, share in zip((a, b), shares, strict=True)]
    preset = fxlrp.Preset("epsilon", linear=RULE, pooling=Norm(EPSILON))
    found = fxlrp.compile(model, preset, start=lambda output, target: relevance)(x).relevance
    assert_close(found, torch.cat(expected, 1), NEAR)
    # And in zennit ``a`` is explained with the values of ``b``.
    theirs, _ = attributed(model, x, relevance)
    assert_close(theirs, torch.cat([dense(model.fc, b, share) for share in shares], 1), NEAR)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = seeded_linear(bias=False)

    def forward(self, x):
        return x + self.fc(x)


def test_an_addition_needs_no_canonizer_to_conserve(zennit):
    model = Residual().eval()
    x, relevance = signal_and_relevance()
    h = model.fc(x)
    shares = SignedSplit(EPSILON)(relevance, x, h).operands
    assert_close(explained(model, x, relevance), shares[0] + dense(model.fc, x, shares[1]), NEAR)
    # Without a canonizer for this class both branches receive all of it.
    theirs, _ = attributed(model, x, relevance)
    assert_close(theirs, relevance + dense(model.fc, x, relevance), NEAR)


class PreActivation(nn.Module):
    """A norm whose module comes behind a layer's, but which reads something else."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.norm(x + self.fc(x)))


def test_a_norm_is_folded_into_what_it_reads_not_what_stands_before_it(zennit):
    from zennit.canonizers import SequentialMergeBatchNorm

    model = seeded(PreActivation()).requires_grad_(False)
    x, relevance = signal_and_relevance()
    output = model(x)
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    merged = nn.Linear(4, 4).double()
    merged.weight.data = model.head.weight * scale
    merged.bias.data = model.head(model.norm.bias - model.norm.running_mean * scale)
    h = x + model.fc(x)
    shares = SignedSplit(EPSILON)(dense(merged, h, relevance), x, model.fc(x)).operands
    assert_close(explained(model, x, relevance), shares[0] + dense(model.fc, x, shares[1]), NEAR)
    # zennit's canonizer goes by the order of modules: what it explains is another function.
    _, theirs = attributed(model, x, relevance, SequentialMergeBatchNorm())
    assert (theirs - output).abs().max() > 0.1 * output.abs().max()


def test_a_model_can_be_given_new_weights_after_it_was_explained(zennit):
    from zennit.canonizers import SequentialMergeBatchNorm

    def make(seed):
        return seeded(nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)), seed).requires_grad_(False)

    x, relevance = signal_and_relevance()
    wanted, later = make(0).state_dict(), make(1)
    model = make(0)
    explained(model, x, relevance)
    assert model.state_dict().keys() == wanted.keys()
    model.load_state_dict(later.state_dict())
    assert torch.equal(model(x), later(x))
    # Removed canonizers of zennit's leave a parameter behind, and weights that loading does not reach.
    model = make(0)
    attributed(model, x, relevance, SequentialMergeBatchNorm())
    assert model.state_dict().keys() - wanted.keys() == {"0.bias"}
    model.load_state_dict(later.state_dict(), strict=False)
    assert not torch.allclose(model(x), later(x))
