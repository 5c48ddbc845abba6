"""Batch norm as a part of the layer next to it: what a network is explained as whose norms were really folded."""

import copy

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_unchanged, snapshot
from seeded import seeded
from test_linear_rules import RULES, dense
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import fxlrp
from fxlrp.rules import Epsilon, Fold, Gamma, ZPlus
from fxlrp.rules.rule import REASONS

DOUBLE = torch.float64


def folding(rule, **kinds):
    return fxlrp.Preset("folding", linear=rule, batch_norm=Fold(), **kinds)


def explainer_of(model, rule, relevance, **options):
    return fxlrp.compile(model, folding(rule), start=lambda output, target: relevance, **options)


def randn_like_output(model, x):
    with torch.no_grad():
        return torch.randn_like(model(x))


# One layer and its norms are one affine map ----------------------------------------------------

LAYERS = {
    "conv → norm": ([nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)], (2, 3, 5, 5)),
    "conv without bias → norm": ([nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)], (2, 3, 6, 5)),
    "conv → norm without weights": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)], (2, 3, 5, 5)),
    "conv1d → norm": ([nn.Conv1d(3, 4, 3, dilation=2), nn.BatchNorm1d(4)], (2, 3, 8)),
    "conv3d → norm": ([nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 2, 3, 3, 3)),
    "grouped conv → norm": ([nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (2, 4, 4, 4)),
    "depthwise conv → norm": ([nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)], (2, 4, 4, 4)),
    "transposed conv → norm": ([nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)], (2, 3, 3, 3)),
    "grouped transposed conv → norm": (
        [nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6)], (2, 4, 3, 3),
    ),
    "linear → norm": ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (3, 5)),
    "linear → norm of its rows": ([nn.Linear(5, 4), nn.BatchNorm1d(3)], (2, 3, 5)),
    "linear → norm of as many rows as features": ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (2, 4, 5)),
    "linear → norm of the rows of a map": ([nn.Linear(5, 4, bias=False), nn.BatchNorm2d(3)], (2, 3, 2, 5)),
    # Where a convolution pads, the shift of a norm before it does not enter.
    "norm → conv": ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)], (2, 3, 5, 5)),
    "norm → conv without bias": ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, bias=False)], (2, 3, 5, 5)),
    "norm → grouped conv": ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)], (2, 4, 5, 4)),
    "norm → transposed conv": ([nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)], (2, 4, 3, 3)),
    "norm → linear": ([nn.BatchNorm1d(5), nn.Linear(5, 4)], (3, 5)),
    "norm of rows → linear": ([nn.BatchNorm1d(3), nn.Linear(5, 4)], (2, 3, 5)),
    "norm of as many rows as features → linear": ([nn.BatchNorm1d(5), nn.Linear(5, 4)], (2, 5, 5)),
    "norm → conv → norm": (
        [nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)], (2, 3, 4, 4),
    ),
    "norm → linear → norm": ([nn.BatchNorm1d(5), nn.Linear(5, 4), nn.BatchNorm1d(4)], (3, 5)),
    "norm → linear → norm of rows": ([nn.BatchNorm1d(3), nn.Linear(5, 4), nn.BatchNorm1d(3)], (2, 3, 5)),
}  # fmt: skip

FAST = (
    "z-plus", "epsilon, bias absorb", "gamma, bias share", "alpha2 beta1, bias absorb", "w-square, bias absorb", "flat",
    "box",
)  # fmt: skip


def make(case):
    """The layer and its norms with any scale, and an input."""
    modules, shape = LAYERS[case]
    model = nn.Sequential(*copy.deepcopy(modules)).double().eval()
    for module in model:
        for parameter in module.parameters():
            nn.init.normal_(parameter)  # scales of both signs
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model, torch.randn(shape, dtype=DOUBLE)


def looks_of(model, x):
    """How often each output looks at each input: the layer with weights of one."""
    (layer,) = (copy.deepcopy(m) for m in model if not isinstance(m, nn.modules.batchnorm._BatchNorm))
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return dense(layer, x)[0]


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("rule", [pytest.param(r, marks=[] if r in FAST else [pytest.mark.slow]) for r in RULES])
def test_a_rule_sees_the_layer_and_its_norms_as_one_matrix(rule, case):
    model, x = make(case)
    relevance, looks = randn_like_output(model, x) + 2, looks_of(model, x)
    W, b = dense(model, x)
    W = W * (looks != 0)  # differences of outputs leave rounding where there is no weight
    explainer = explainer_of(model, RULES[rule], relevance)
    expected = oracle.redistribute(RULES[rule], W, b, x.flatten(1), relevance.flatten(1), looks)
    assert_close(explainer(x).relevance.flatten(1), expected, 1e-10)
    assert_conserves(explainer, x, absorbs=REASONS)


@pytest.mark.parametrize("case", ["linear → norm of its rows", "norm → conv → norm"])
def test_a_model_that_is_exported_folds_as_well(case):
    model, x = make(case)
    relevance = randn_like_output(model, x)
    rule = Epsilon(1e-2, bias="absorb")
    exported = explainer_of(model, rule, relevance, example_inputs=x)
    assert_close(exported(x).relevance, explainer_of(model, rule, relevance)(x).relevance)


# Whole networks --------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block with norms and a projection."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.skip, self.bn_skip = nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.bn_skip(self.skip(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.block = Block()
        self.fc1, self.bn_fc, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3))
        return self.fc2(F.relu(self.bn_fc(self.fc1(x))))


def really_folded(net):
    """A copy without norms."""
    net = copy.deepcopy(net)
    net.stem, net.bn = fuse_conv_bn_eval(net.stem, net.bn), nn.Identity()
    net.fc1, net.bn_fc = fuse_linear_bn_eval(net.fc1, net.bn_fc), nn.Identity()
    block = net.block
    for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("skip", "bn_skip")):
        setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
        setattr(block, norm, nn.Identity())
    return net.eval()


@pytest.mark.parametrize("preset", [name for name, preset in fxlrp.PRESETS.items() if preset.batch_norm == Fold()])
def test_a_preset_that_folds_is_itself_on_the_folded_network(preset):
    net, x = seeded(Net()), torch.randn(3, 3, 9, 9, dtype=DOUBLE)
    folded = really_folded(net)
    assert_close(folded(x).detach(), net(x).detach())
    options = {"start": lambda output, target: output.relu() + 1}
    before = snapshot(net, x)
    explainer, plain = fxlrp.compile(net, preset, **options), fxlrp.compile(net, **options)
    untouched = plain(x).relevance
    assert_close(explainer(x).relevance, fxlrp.compile(folded, preset, **options)(x).relevance, 1e-10)
    assert_conserves(explainer, x, absorbs=REASONS)
    assert_unchanged(before, snapshot(net, x))
    assert torch.equal(plain(x).relevance, untouched)


def test_folded_norms_follow_the_model():
    net, x = seeded(Net()), torch.randn(2, 3, 9, 9, dtype=DOUBLE)
    explainer = fxlrp.compile(net, "epsilon_plus", start="one")
    explainer(x, 1)
    with torch.no_grad():
        net.bn.running_var.mul_(3)
        net.block.bn2.weight.neg_()
    expected = fxlrp.compile(really_folded(net), "epsilon_plus", start="one")(x, 1).relevance
    assert_close(explainer(x, 1).relevance, expected, 1e-10)


# Which layer a norm becomes a part of -----------------------------------------------------------


def reasons(explainer):
    return {row.node: row.reason for row in explainer.summary() if row.rule == repr(Fold())}


class Shared(nn.Module):
    """One convolution, called twice, with a norm of its own for each call."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.second(self.conv(F.relu(self.first(self.conv(x)))))


RULES_OF_NETS = [Epsilon(1e-2, bias="absorb"), ZPlus(), ZPlus(bias="share"), Gamma(0.3, bias="absorb")]


@pytest.mark.parametrize("rule", RULES_OF_NETS, ids=repr)
def test_each_call_of_a_layer_has_the_norm_behind_it(rule):
    model, x = seeded(Shared()), torch.randn(2, 3, 5, 5, dtype=DOUBLE)
    relevance = randn_like_output(model, x)
    convs = [fuse_conv_bn_eval(model.conv, norm) for norm in (model.first, model.second)]
    folded = nn.Sequential(convs[0], nn.ReLU(), convs[1]).eval()
    explainer = explainer_of(model, rule, relevance)
    assert_close(explainer(x).relevance, explainer_of(folded, rule, relevance)(x).relevance, 1e-10)
    assert reasons(explainer) == {
        "first": "preset folding, into conv", "second": "preset folding, into conv_1",
    }  # fmt: skip


class ReadByTwo(nn.Module):
    """A norm that two convolutions read."""

    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, x):
        h = self.norm(x)
        return self.a(h) + self.b(h)


@pytest.mark.parametrize("rule", RULES_OF_NETS, ids=repr)
def test_a_norm_is_folded_into_each_layer_that_reads_it(rule):
    model, x = seeded(ReadByTwo()), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    folded = copy.deepcopy(model)
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    shift = model.norm.bias - model.norm.running_mean * scale
    for conv in (folded.a, folded.b):  # without padding the shift is the same bias everywhere
        shifted = conv.weight[:, :, 0, 0] @ shift
        conv.bias = nn.Parameter(shifted if conv.bias is None else conv.bias + shifted)
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None])
    folded.norm = nn.Identity().eval()
    relevance = randn_like_output(model, x)
    explainer = explainer_of(model, rule, relevance)
    assert_close(explainer(x).relevance, explainer_of(folded, rule, relevance)(x).relevance, 1e-10)
    assert_conserves(explainer, x, absorbs=REASONS)
    assert reasons(explainer) == {"norm": "preset folding, into a, b"}


class ReadBeside(nn.Module):
    """A convolution that is read by its norm and by something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        h = self.conv(x)
        return self.norm(h) + h.sigmoid()


def test_a_layer_that_something_else_reads_keeps_its_own_weights():
    model, x = seeded(ReadBeside()), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    relevance = randn_like_output(model, x)
    explainer = explainer_of(model, ZPlus(), relevance)
    passing = fxlrp.compile(model, fxlrp.Preset("passing"), start=lambda output, target: relevance)
    assert torch.equal(explainer(x).relevance, passing(x).relevance)
    assert reasons(explainer) == {"norm": "preset folding: passes, because no linear layer is next to it"}


class Returned(nn.Module):
    """A convolution whose result the model returns, beside its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        h = self.conv(x)
        return h, self.norm(h)


@pytest.mark.parametrize("output", [0, 1])
def test_a_norm_that_nothing_explained_passes_through_changes_nothing(output):
    model, x = seeded(Returned()), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    relevance = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    layer = fuse_conv_bn_eval(model.conv, model.norm) if output else model.conv
    rule = Epsilon(1e-2, bias="absorb")
    found = explainer_of(model, rule, relevance, output=output)(x).relevance
    assert_close(found, explainer_of(nn.Sequential(layer).eval(), rule, relevance)(x).relevance, 1e-10)
