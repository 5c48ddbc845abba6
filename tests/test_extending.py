"""What is added from outside: a rule of a new family, a linear operation, a step. Each takes two places at most."""

import operator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from torch import nn

import fxlrp
from fxlrp.common.errors import RuleError
from fxlrp.passes.site import OFFERED
from fxlrp.presets.preset import SERVED
from fxlrp.rules import Epsilon, Gradient, Pass, Rule, Shares, ZPlus
from fxlrp.rules.rule import families
from fxlrp.steps.declaration import StepFacts, declare, facts_of
from fxlrp.steps.linear_operation import FixedOperation
from fxlrp.steps.primitives import primitive
from fxlrp.vocabulary import VOCABULARY, Kind, Operation, Sign, register

DOUBLE = torch.float64


class Leaking(Rule):
    """A family of its own: relevance by the slope between zero and the input, the rest is absorbed."""

    operations = ("leaky_relu",)
    needs = ("x", "output", "negative_slope", "nonnegative")

    def __call__(self, relevance, x, output, negative_slope, nonnegative):
        share = relevance * (output / x)
        assert negative_slope == 0.25
        assert nonnegative is False
        return Shares([share], {"bias": lambda: relevance - share})


@pytest.fixture
def leaky():
    return nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.25), nn.Linear(6, 3)).double().eval()


def test_a_rule_of_a_new_family_is_its_class_and_an_override(leaky):
    x = torch.randn(4, 5, dtype=DOUBLE)
    explainer = fxlrp.compile(leaky, "epsilon", rules={F.leaky_relu: Leaking()}, start="logit")
    plain = fxlrp.compile(leaky, "epsilon", start="logit", checkpoints=["1"])
    hidden = leaky[0](x)
    arrived = plain(x).checkpoints["1"]
    factor = torch.where(hidden < 0, 0.25, 1.0).to(DOUBLE)
    row = next(row for row in explainer.ledger(x) if "Leaking" in row.rule)
    assert_close(row.absorbed, (arrived * (1 - factor)).sum(1), 1e-9)
    assert_conserves(explainer, x, absorbs=("bias", "stabilizer"))


def test_a_rule_of_a_new_family_is_refused_where_it_is_not_for(leaky):
    with pytest.raises(RuleError, match=r"rules\[linear\] = Leaking\(\) cannot be taken .*linear takes a LinearRule"):
        fxlrp.compile(leaky, "conserving", rules={F.linear: Leaking()})


def test_a_rule_that_needs_what_its_operation_does_not_offer_says_what_there_is(leaky):
    class Wanting(Rule):
        operations = ("leaky_relu",)
        needs = ("temperature",)

        def __call__(self, relevance, temperature):
            return Shares([relevance])

    with pytest.raises(RuleError, match=r"Wanting needs 'temperature', which leaky_relu .* ask for one of x, output"):
        fxlrp.compile(leaky, "conserving", rules={F.leaky_relu: Wanting()})(torch.randn(1, 5, dtype=DOUBLE))


def test_every_kind_of_operation_has_a_family_and_a_field_of_the_preset():
    kinds = {served.kind for served in SERVED.values()}
    assert kinds == set(Kind) - {Kind.INPUT, Kind.ROUTING, Kind.CONSTANT}
    for name, (kind, operation, _) in SERVED.items():
        assert families(kind, operation), name
        assert all(family.fits(kind, operation) for family in families(kind, operation))
        assert Gradient.fits(kind, operation)
    assert not Pass.fits(Kind.LINEAR)
    assert not ZPlus.fits(Kind.POINTWISE, "relu")
    assert {"x", "output", "support", "signed"} <= set(OFFERED)


@dataclass(frozen=True)
class TwiceAndFlipped(FixedOperation):
    """Twice a value plus the value flipped: a linear operation with weights of its own."""

    def apply(self, x, weight):
        return 2 * x + x.flip(-1)

    def transpose(self, s, weight, x):
        return 2 * s + s.flip(-1)


@pytest.fixture
def rolled():
    """A linear operation that the vocabulary does not know, registered for the time of a test."""
    with torch.library._scoped_library("fxlrp_test", "FRAGMENT") as library:
        library.define("twice_and_flipped(Tensor self) -> Tensor")
        library.impl("twice_and_flipped", lambda x: 2 * x + x.flip(-1), "CompositeImplicitAutograd")
        target = torch.ops.fxlrp_test.twice_and_flipped.default
        entry = Operation(target, Kind.LINEAR, bind=lambda a, operand: (TwiceAndFlipped(), None, None), sign=Sign.KEEPS)
        register(entry)
        try:
            yield target
        finally:
            for table in (VOCABULARY._by_target, VOCABULARY._by_function, VOCABULARY._by_overload):
                for key in [key for key, value in table.items() if value in (entry, target)]:
                    del table[key]


def test_a_linear_operation_is_its_transpose_and_its_entry(rolled):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(rolled(F.relu(x)))

    model, x = Net().double().eval(), torch.rand(3, 4, dtype=DOUBLE)
    explainer = fxlrp.compile(model, fxlrp.Preset("ε", linear=Epsilon(1e-12)), start="logit")
    weight = 2 * torch.eye(4, dtype=DOUBLE) + torch.eye(4, dtype=DOUBLE).flip(0)
    explanation = explainer(x)
    row = model.fc.weight.detach()[explanation.target]
    hidden = x @ weight.T
    share = explanation.start[:, None] * hidden * row / (hidden * row).sum(1, keepdim=True)
    assert_close(explanation.relevance, x * ((share / hidden) @ weight), 1e-6)
    assert_conserves(fxlrp.compile(model, "conserving"), x)
    whole = explainer(x).relevance
    parts = [explainer(x, conditions={"fc": [c]}, target=explanation.target).relevance for c in range(3)]
    assert_close(sum(parts), whole, 1e-9)


def test_a_step_says_what_is_known_of_it_where_it_is_defined():
    @primitive(linear="first", fresh=True)
    def doubled(relevance):
        return 2 * relevance

    @primitive
    def unknown(relevance):
        return 2 * relevance

    assert facts_of(doubled) == StepFacts(linear="first", fresh=True, reads=True)
    assert facts_of(unknown) == StepFacts()
    assert facts_of(operator.mul).linear == "either"
    assert facts_of("sum").linear == "first"
    assert facts_of(getattr, (None, "mT")).linear == "first"
    assert facts_of(getattr, (None, "dtype")).linear == "none"
    assert facts_of(getattr, (None, "shape")).reads
    assert not facts_of(getattr, (None, "mT")).reads


def test_a_wrong_declaration_is_refused():
    with pytest.raises(ValueError, match="linear='second': choose one of 'first', 'jointly', 'either', 'none'"):
        primitive(linear="second")
    with pytest.raises(TypeError, match="linearity"):
        primitive(linearity="first")


def test_a_function_of_others_is_declared_in_one_entry():
    def theirs(relevance):
        return relevance

    declare([theirs], linear="first")
    declare([theirs], reads=True)
    assert facts_of(theirs) == StepFacts(linear="first", reads=True)
