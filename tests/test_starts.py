"""Contrastive starts: what speaks for one class rather than for others."""

import copy
import pickle

import pytest
import torch
from checks import assert_close, assert_conserves
from nets import BlockPlan, NetPlan, RandomNet
from test_several_targets import assert_equals_single_calls
from torch import nn

import fxlrp
from fxlrp.errors import StartError
from fxlrp.starts import STARTS, against

DOUBLE = torch.float64
PLAN = NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2)])


@pytest.fixture
def logits():
    return torch.randn(4, 5, dtype=DOUBLE)


@pytest.fixture
def target():
    return torch.tensor([0, 3, 3, 2])


def test_contrastive_is_the_targets_logit_against_all_others(logits, target):
    start = STARTS["contrastive"](logits, target)
    for item, t in enumerate(target.tolist()):
        expected = torch.full((5,), -logits[item, t].item() / 4, dtype=DOUBLE)
        expected[t] = logits[item, t]
        assert_close(start[item], expected, 1e-15)
    assert_close(start.sum(1) + 1, torch.ones(4, dtype=DOUBLE), 1e-14)


def test_log_odds_are_the_target_against_the_others_by_their_probabilities(logits, target):
    start = STARTS["log_odds"](logits, target)
    for item, t in enumerate(target.tolist()):
        others = [n for n in range(5) if n != t]
        rivals = logits[item, others].softmax(0)
        assert_close(start[item, others], -rivals * logits[item, others], 1e-14)
        assert start[item, t] == logits[item, t]
        odds = logits[item, t] - logits[item, others].logsumexp(0)
        assert_close(start[item].sum(), odds - (rivals * rivals.log()).sum(), 1e-13)
    shifted = STARTS["log_odds"](logits + 7, target)  # what all logits share cancels
    assert_close(shifted.sum(1), start.sum(1), 1e-12)
    masked = torch.cat([logits, torch.full((4, 1), float("-inf"), dtype=DOUBLE)], 1)
    assert_close(STARTS["log_odds"](masked, target)[:, :5], start, 1e-14)


def test_centred_is_the_target_against_the_mean_of_the_others(logits, target):
    start = STARTS["centred"](logits, target)
    own = logits.gather(1, target[:, None])[:, 0]
    assert_close(start.sum(1), own - (logits.sum(1) - own) / 4, 1e-14)
    assert_close(STARTS["centred"](logits + 7, target).sum(1), start.sum(1), 1e-12)


def test_softmax_gradient_is_the_gradient_of_the_probability(logits, target):
    start = STARTS["softmax_gradient"](logits, target)
    leaf = logits.clone().requires_grad_()
    leaf.softmax(1).gather(1, target[:, None]).sum().backward()
    assert_close(start, leaf.grad, 1e-13)
    sure = torch.tensor([[800.0, 0.0, 0.0]], dtype=DOUBLE)
    assert not STARTS["softmax_gradient"](sure, torch.tensor([0])).isnan().any()


def test_against_is_the_difference_of_two_logits(logits, target):
    start = against(1)(logits, target)
    assert_close(start.sum(1), logits.gather(1, target[:, None])[:, 0] - logits[:, 1], 1e-14)
    assert ((start != 0).sum(1) == 2).all()
    several = against(torch.tensor([4, 0, 1, 1]))(logits, target)
    assert_close(several[0], against(4)(logits, target)[0], 1e-15)
    assert_close(several[2], start[2], 1e-15)


def test_against_nothing_in_particular_is_against_the_strongest_other(logits, target):
    strongest = logits.scatter(1, target[:, None], float("-inf")).argmax(1)
    assert torch.equal(against()(logits, target), against(strongest)(logits, target))


def test_against_itself_there_is_no_relevance(logits, target):
    assert not against(3)(logits, target)[1:3].any()


CONTRASTS = ["contrastive", "softmax_gradient", "log_odds", "centred", against(2), against()]


@pytest.mark.parametrize("start", CONTRASTS, ids=str)
def test_contrasts_conserve_and_have_rows(start):
    model, x = RandomNet(PLAN).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", start=start)
    for row in explainer.ledger(x):  # the start may add up to zero, so nothing here is relative to it
        assert (row.error.abs() <= 1e-13).all(), row.node
    assert_equals_single_calls(explainer, x, targets=(0, 1, 4), limit=1e-10)


def test_a_difference_of_logits_is_what_relevance_adds_up_to():
    model, x = RandomNet(PLAN).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", start=against(2))
    explanation = explainer(x, target=1)
    output = model(x).detach()
    assert_close(explanation.start, output[:, 1] - output[:, 2], 1e-12)
    assert_close(explanation.relevance.sum((1, 2, 3)), explanation.start, 1e-10)
    for twin in (copy.deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):
        assert torch.equal(twin(x, target=1).relevance, explanation.relevance)
    assert_conserves(explainer, x, target=1)


@pytest.mark.parametrize("other", [1.0, True, "cat", torch.tensor([0.5]), torch.tensor([True])])
def test_what_is_no_class_is_refused(other):
    with pytest.raises(StartError, match="takes a class number, an integer tensor of them, or nothing"):
        against(other)


def test_classes_that_are_not_there_are_refused(logits, target):
    for other, message in ((5, "from 0 to 4"), (-1, "from 0 to 4"), (torch.tensor([1, 2]), r"one per item, \(4,\)")):
        with pytest.raises(StartError, match=message):
            against(other)(logits, target)
    for start in (STARTS["contrastive"], against(0)):
        with pytest.raises(StartError, match="at least two classes"):
            start(logits[:, :1], target * 0)
    with pytest.raises(StartError, match=r"needs \(batch, classes\)"):
        fxlrp.compile(nn.Conv2d(3, 2, 1).eval(), "conserving", start="contrastive")(torch.randn(1, 3, 4, 4))
