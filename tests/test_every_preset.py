"""What every preset keeps to: the ledger adds up at each node, and nothing but its own explainer knows of it."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_unchanged, snapshot
from nets import BlockPlan, NetPlan, RandomNet
from test_recurrent import Recurrent
from token_nets import FEEDS, WIDTH, Attention, Block, Fused, SpelledRMSNorm, Tokens
from torch import nn

import fxlrp
from fxlrp.presets import Preset
from fxlrp.rules import (
    AlphaBeta,
    Bilinear,
    Epsilon,
    FixedSplit,
    Flat,
    Fold,
    Gamma,
    GammaSplit,
    Gradient,
    Halves,
    Norm,
    NormEpsilon,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    ResidualOnly,
    SignedSplit,
    SkipOnly,
    SoftmaxTaylor,
    ThroughValues,
    Winner,
    WPlus,
    WSquare,
    ZBox,
    ZPlus,
)

DOUBLE = torch.float64


class Products(nn.Module):
    """A gated linear network: a product of two signals, neither bounded, and one with a gate."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.a(x) * self.b(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


SAMPLES = {
    "lstm": ("attnlrp", "guided_backprop"),  # goes step by step, which takes its time
    "gated": ("conserving", "attnlrp", "cp_lrp", "guided_backprop", "otsuki2024"),
}
"""By net the presets of the default run; the others have it in the long run."""

NETS = {
    "residual": (
        lambda: RandomNet(NetPlan([
            BlockPlan(bias=True), BlockPlan(skip="projection", stride=2, squeeze=True),
            BlockPlan(skip="padded", planes=24, preactivation=True), BlockPlan(skip="dense", norm=False),
        ], stem_bias=True)),
        (3, 3, 12, 12),
    ),
    "transformer": (lambda: Tokens(Block(Fused()), Block(Attention(), norm=SpelledRMSNorm), token=True), (3, 6, WIDTH)),
    "gated": (lambda: Tokens(Block(Fused(), feed=FEEDS["swiglu"]())), (3, 6, WIDTH)),
    "products": (Products, (3, 6)),
    "lstm": (lambda: Recurrent(final_states=True, num_layers=2), (3, 6, 4)),
}  # fmt: skip
RUNS = [
    pytest.param(name, preset, marks=[] if preset in SAMPLES.get(name, fxlrp.PRESETS) else [pytest.mark.slow])
    for name in NETS
    for preset in fxlrp.PRESETS
]


def make(name):
    model, shape = NETS[name]
    return model().double().eval(), torch.randn(shape, dtype=DOUBLE)


def assert_adds_up(ledger):
    """At each node and in all, every reason counted, but for rounding: amounts of both signs cancel in these sums."""
    limit = 1e-9 * torch.stack([ledger.start.abs(), *(row.received.abs() for row in ledger)]).amax(0)
    for row in ledger:
        assert torch.isfinite(row.received).all()
        assert (row.error.abs() <= limit).all(), f"{row.node} ({row.rule}): {row.error}"
    assert (ledger.error.abs() <= limit).all()
    assert_close(sum(ledger.absorbed.values()), sum(row.absorbed for row in ledger), 1e-10)


@pytest.mark.parametrize(("name", "preset"), RUNS)
def test_a_preset_adds_up_and_neither_the_model_nor_another_explainer_of_it_notices(name, preset):
    model, x = make(name)
    before = snapshot(model, x)
    other = fxlrp.compile(model, "conserving")
    expected = other(x).relevance
    explainer = fxlrp.compile(model, preset)
    first, ledger = explainer(x), explainer.ledger(x)
    assert len(explainer.summary()) >= len(ledger)
    assert_adds_up(ledger)
    assert_close(first.relevance.flatten(1).sum(1), ledger.relevance, 1e-10)
    assert ("gradient" in ledger.absorbed) == (fxlrp.PRESETS[preset].linear == Gradient())
    assert_unchanged(before, snapshot(model, x))
    assert torch.equal(other(x).relevance, expected)
    assert torch.equal(explainer(x).relevance, first.relevance)
    assert torch.equal(first.output, before["output"])


RULES = {
    "linear": [
        ZPlus(), ZPlus(bias="share"), WPlus(bias="absorb"), Epsilon(1e-2), Epsilon(1e-2, bias="absorb"),
        Gamma(stabilizer=1e-2, bias="share"), Gamma(generalized=False), AlphaBeta(bias="absorb"), WSquare(), Flat(),
        Norm(1e-2), ZBox(-3, 3), Gradient(),
    ],
    "split": [FixedSplit(0.3), SkipOnly(), ResidualOnly(), SignedSplit(), GammaSplit(), Gradient()],
    "selection": [Winner(), Gradient()],
    "gate": [Halves(), Gradient()],
    "product": [Bilinear(), ThroughValues(Epsilon()), Gradient()],
    "norm": [NormEpsilon(), Gradient()],
    "batch_norm": [Fold(), NormEpsilon(), Gradient()],
    "softmax": [SoftmaxTaylor(), Gradient()],
    "pointwise": [Gradient()],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rule"), [(kind, rule) for kind, rules in RULES.items() for rule in rules], ids=lambda value: repr(value)
)
def test_each_rule_adds_up_and_leaves_everything_as_it_is(kind, rule):
    for name in ("residual", "transformer"):
        model, x = make(name)
        before = snapshot(model, x)
        explainer = fxlrp.compile(model, Preset("one rule", **{kind: rule}))
        assert_adds_up(explainer.ledger(x))
        assert_unchanged(before, snapshot(model, x))


@pytest.mark.parametrize("rule", [ReLUGuidedBackprop(), ReLUDeconvNet()], ids=repr)
def test_a_rule_of_relus_adds_up(rule):
    model, x = make("residual")
    ledger = fxlrp.compile(model, "conserving", rules={F.relu: rule}).ledger(x)
    assert_adds_up(ledger)
    assert {row.rule for row in ledger if "gradient" in row.by_reason} == {repr(rule)}
