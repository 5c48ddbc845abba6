"""The checks can fail: rules are broken on purpose, and the checks that guard them must go red."""

from dataclasses import replace

import pytest
import torch
from checks import assert_close, assert_conserves, assert_items_independent
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp.errors import NonFiniteError, PropagationError
from fxlrp.passes import annotate
from fxlrp.passes.aliases import Aliases
from fxlrp.passes.relevance_flows import Flows
from fxlrp.rules import join, primitives
from fxlrp.rules.linear import mechanism
from fxlrp.runtime import backends
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.verify import Verifier
from fxlrp.steps import addition, routing

PLAN = NetPlan([BlockPlan(inplace=True), BlockPlan(skip="projection"), BlockPlan(skip="dense")])


@pytest.fixture
def model():
    return RandomNet(PLAN).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12, dtype=torch.float64)


def broken(function):
    """A replacement that is recorded into graphs as the real primitive is."""
    return primitives.primitive(function)


def test_a_wrong_weight_sign_goes_red(monkeypatch, model):
    import test_linear_rules as oracle

    oracle.test_a_rule_is_its_dense_formula("z-plus", "conv2d")
    monkeypatch.setattr(mechanism, "positive", broken(lambda weight: (-weight).clamp(min=0)))
    with pytest.raises(AssertionError):
        oracle.test_a_rule_is_its_dense_formula("z-plus", "conv2d")


def test_a_wrong_transpose_goes_red(monkeypatch):
    import test_linear_rules as oracle

    from fxlrp.steps.convolution import Convolution

    right = Convolution.transpose
    monkeypatch.setattr(Convolution, "transpose", lambda self, s, w, x: right(self, s, w.flip(2), x))
    with pytest.raises(AssertionError):
        oracle.test_a_rule_is_its_dense_formula("z-plus", "conv2d")


def test_a_dropped_operand_goes_red(monkeypatch, model, x):
    def half_lost(self, relevance, skip, residual, **supports):
        return fxlrp.rules.Shares([None, relevance * (1 - addition.ratio(skip, residual))])

    assert_conserves(fxlrp.compile(model, "conserving"), x)
    monkeypatch.setattr(join.RatioSplit, "__call__", half_lost)
    with pytest.raises(AssertionError, match="loses"):
        assert_conserves(fxlrp.compile(model, "conserving"), x)


def test_a_lost_denominator_goes_red(monkeypatch, model, x):
    monkeypatch.setattr(mechanism, "rescale", broken(lambda share, *others: share * 1))
    with pytest.raises(AssertionError):
        assert_conserves(fxlrp.compile(model, "conserving"), torch.zeros_like(x))


def test_a_piece_of_a_concatenation_in_the_wrong_place_goes_red(monkeypatch):
    import test_routing

    test_routing.test_relevance_moves_back_by_the_transpose("cat in another order")
    right = routing.uncat
    monkeypatch.setattr(routing, "uncat", broken(lambda r, tensors, dim: [p.flip(dim) for p in right(r, tensors, dim)]))
    with pytest.raises(AssertionError):
        test_routing.test_relevance_moves_back_by_the_transpose("cat in another order")


def test_a_stale_in_place_value_goes_red(monkeypatch):
    import test_capture

    test_capture.test_later_readers_see_what_was_overwritten(test_capture.overwritten_then_read)
    monkeypatch.setattr(Aliases, "overwrite", lambda self, node: None)
    monkeypatch.setattr(Verifier, "check", lambda *args: None)  # which would see it
    with pytest.raises(AssertionError):
        test_capture.test_later_readers_see_what_was_overwritten(test_capture.overwritten_then_read)


def test_a_wrong_sign_fact_goes_red(monkeypatch):
    import oracle

    monkeypatch.setattr(annotate, "_nonnegative", lambda operation, arguments: True)
    class Sequential(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(x))

    model, x = Sequential().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    relevance = torch.rand(2, 3, dtype=torch.float64)
    explainer = fxlrp.compile(model, "conserving", start=lambda o, t: relevance, checkpoints=["b"])
    W, b = model.b.weight.detach(), model.b.bias.detach()
    hidden = model.a(x).detach()
    got = explainer(x).checkpoints["b"]
    expected = oracle.redistribute(fxlrp.rules.ZPlus(), W, b, hidden, relevance, torch.ones_like(W))
    with pytest.raises(AssertionError):
        assert_close(got, expected)


def test_items_that_meet_go_red(monkeypatch, model, x):
    def over_the_batch(share, relevance, *others):
        return share * (relevance.sum() / share.sum())

    monkeypatch.setattr(mechanism, "rescale", broken(over_the_batch))
    model.stem.weight.data[0].clamp_(max=0)
    with pytest.raises((AssertionError, NonFiniteError)):
        assert_items_independent(fxlrp.compile(model, "conserving"), x)


def test_a_doubled_share_goes_red(monkeypatch, model, x):
    right = Flows.hand
    monkeypatch.setattr(Flows, "hand", lambda self, operand, reader, share: right(self, operand, reader, share * 1.01))
    with pytest.raises(AssertionError):
        assert_conserves(fxlrp.compile(model, "conserving"), x)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_program_that_is_not_the_model_goes_red(monkeypatch, model, x, backend):
    if backend == "inductor":
        monkeypatch.setattr(backends.Inductor, "runner", lambda self, module, *, autocast: module)
    plain = Engine.program

    def with_another_input(self, *arguments, **options):
        program = plain(self, *arguments, **options)
        return replace(program, module=lambda first, *others: program.module(first.flip(-1), *others))

    explainer = fxlrp.compile(model, backend=backend)
    monkeypatch.setattr(Engine, "program", with_another_input)
    with pytest.raises(PropagationError, match="output 0 of the program that was made of RandomNet is not the model's"):
        explainer(x)
    monkeypatch.setattr(Engine, "program", plain)
    fxlrp.compile(model, backend=backend)(x)
