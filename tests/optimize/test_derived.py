"""What is kept of weights: when it is made anew, in inference mode, beside gradients and in several threads."""

import copy
import threading

import pytest
import torch
from checks import assert_close
from optimize_checks import DOUBLE, assert_same, explained
from optimize_nets import signed
from weight_changes import assert_follows, in_place, network

import fxlrp
from fxlrp.common import tensors
from fxlrp.passes.optimize import derived
from fxlrp.passes.optimize.derived import Derived
from fxlrp.rules import ZPlus

FOLDED = ("single_branch", "transposes_as_convolutions", "fold_weights")


class Kept:
    """Counts how often what is kept of weights is made."""

    def __init__(self, monkeypatch):
        self.count = 0
        right = Derived._made

        def made(derived):
            self.count += 1
            return right(derived)

        monkeypatch.setattr(Derived, "_made", made)

    def during(self, function, *arguments, **options):
        before = self.count
        function(*arguments, **options)
        return self.count - before


@pytest.fixture
def kept(monkeypatch):
    return Kept(monkeypatch)


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "epsilon_gamma_box"])
def test_what_depends_on_weights_is_made_once(kept, preset):
    model, x = network()
    explainer = fxlrp.compile(model, preset)
    assert kept.during(explainer, x) == 1
    assert kept.during(explainer, x) == 0
    assert kept.during(explainer, 2 * x) == 0
    assert kept.during(explainer, x[:1]) == 0  # nothing of it depends on the batch
    assert kept.during(explainer, x, target=[0, 1]) == 1  # the program of several targets is another one
    assert kept.during(explainer, x, target=[0, 1, 2]) == 0


def test_values_are_of_the_weights_alone_whatever_the_input(kept):
    model, _ = network(torch.float32)
    explainer = fxlrp.compile(model, "conserving", optimize=FOLDED)
    images = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 24), torch.randn(1, 3, 24, 16)]
    images += [image.to(memory_format=torch.channels_last) for image in images]
    assert [kept.during(explainer, image) for image in images] == [1, 0, 0, 0, 0, 0]


def test_nothing_is_kept_while_gradients_are_recorded(kept):
    model, x = signed()
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    assert [kept.during(explainer, x) for _ in range(2)] == [1, 1]
    with torch.no_grad():
        assert [kept.during(explainer, x) for _ in range(2)] == [1, 0]
    assert kept.during(explainer, x) == 1
    assert explainer(x).relevance.grad_fn is not None


def test_kept_values_can_be_forgotten(kept):
    model, x = signed()
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    explainer.graph_module.derived.forget()
    assert kept.during(explainer, x) == 1


def test_changes_of_inference_tensors_are_followed():
    with torch.inference_mode():
        model, x = network()
    x = x.clone()
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(2):
        assert_follows(explainer, model, x)
        with torch.inference_mode():
            model.twice.weight.mul_(-1)
            model.stem.weight[0] += 1


def test_inference_mode_gives_the_same_explanation():
    model, x = network()
    explainer, plain = fxlrp.compile(model, "conserving"), explained(model, x, optimize=False)
    with torch.inference_mode():
        assert_same(explainer(x), plain)
    assert_same(explainer(x), plain)
    in_place(model)
    plain = explained(model, x, optimize=False)
    with torch.inference_mode():
        assert_same(explainer(x), plain)
    assert_same(explainer(x), plain)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_gradients_after_inference_mode_are_the_same(converted, optimize):
    # The weights are not trained, so what is kept of them serves gradients by the input as well.
    model, x = signed()
    model.requires_grad_(False)
    options = {"rules": {"stem": ZPlus()}, "differentiable": True}  # which asks nothing of the form of the input
    expected = _gradient(fxlrp.compile(model, optimize=False, **options), x)
    explainer = fxlrp.compile(model.float() if converted else model, optimize=optimize, **options)
    if converted:
        explainer.double()
        expected = _gradient(fxlrp.compile(copy.deepcopy(model).double(), optimize=False, **options), x)
        with torch.no_grad():
            model.stem.weight.mul_(1)  # written to, so that the copies are made anew
    with torch.inference_mode():
        explainer(x)
    assert_close(_gradient(explainer, x), expected, 1e-9)


def _gradient(explainer, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(explainer(x, target=0).relevance.square().sum(), x)[0]


def test_values_that_another_thread_keeps_meanwhile_are_not_taken(monkeypatch):
    # Between a look at whether something changed and its use, another thread may ask for another size.
    model, _ = network()
    explainer = fxlrp.compile(model, "conserving")
    x, other = torch.randn(2, 3, 16, 16, dtype=DOUBLE), torch.randn(1, 3, 16, 24, dtype=DOUBLE)
    plain = explained(model, x, optimize=False)
    explainer(x)
    right, waiting = tensors.Watch.unchanged, [lambda: explainer(other)]

    def unchanged(watch, weights):
        known = right(watch, weights)
        while waiting:
            waiting.pop()()
        return known

    monkeypatch.setattr(derived.Watch, "unchanged", unchanged)
    assert_same(explainer(x), plain)


def test_several_threads_may_share_an_explainer():
    model, _ = network()
    explainer = fxlrp.compile(model, "conserving")
    images = [torch.randn(1, 3, *size, dtype=DOUBLE) for size in ((16, 16), (16, 24), (24, 16))]
    plain = [explained(model, image, optimize=False) for image in images]
    wrong = []

    def work(image, expected):
        try:
            for _ in range(15):
                assert_same(explainer(image), expected)
        except Exception as error:  # whatever it is
            wrong.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(images, plain, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
