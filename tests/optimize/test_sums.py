"""``known_sums``: what was summed once is not summed again to rescale."""

import pytest
import torch
from optimize_checks import DOUBLE, assert_changes_nothing, assert_leaves_tokens_alone, assert_same, written
from optimize_nets import attention, tour
from torch import nn

import fxlrp
from fxlrp.passes.optimize import sums
from fxlrp.steps import batch_axis
from fxlrp.steps.primitives import primitive


@pytest.mark.parametrize("network", [tour, attention])
@pytest.mark.parametrize("start", ["probability", "one"])
def test_rescaled_relevance_is_summed_once(network, start):
    model, x = network()
    plain = fxlrp.compile(model, "conserving", optimize=("single_branch",), start=start)
    known = fxlrp.compile(model, "conserving", optimize=("single_branch", "known_sums"), start=start)
    count = len(written(plain, batch_axis.rescale))
    assert count > 3
    assert not written(known, batch_axis.rescale)
    assert len(written(known, batch_axis.rescale_to)) == count
    # A chain of layers knows its sum from the last one on.
    assert len(written(known, batch_axis.sum_items)) < count
    assert_same(known(x), plain(x))


def test_a_chain_of_layers_takes_one_sum():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(8, 3)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    x[1] = 0
    explainer = assert_changes_nothing(model, x, optimize=("known_sums",))
    assert len(written(explainer, batch_axis.rescale_to)) == 4
    assert len(written(explainer, batch_axis.sum_items)) == 1


def test_relevance_of_either_sign_is_summed_once():
    model, x = tour()
    plain, known = (fxlrp.compile(model, "conserving", optimize=o, start="logit") for o in (False, ("known_sums",)))
    count = len(written(plain, batch_axis.rescale))
    assert len(written(known, batch_axis.rescale_signed_to)) == count > 3
    assert not written(known, batch_axis.rescale_to)
    assert len(written(known, batch_axis.sum_items)) < count
    assert_same(known(x), plain(x))


def test_a_network_without_sums_is_left_alone():
    assert_leaves_tokens_alone("known_sums")


def test_a_wrong_sum_is_noticed(monkeypatch):
    right = batch_axis.sum_items
    wrong = primitive(lambda relevance, batch_axis=None: 1.01 * right(relevance, batch_axis))
    monkeypatch.setattr(sums, "sum_items", wrong)
    model, x = tour()
    with pytest.raises(AssertionError):
        assert_changes_nothing(model, x, optimize=("known_sums",))
