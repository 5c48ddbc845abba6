"""Relevance averaged over noisy copies of an input."""

import pytest
import torch
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp.errors import InputError, TargetError


@pytest.fixture
def model():
    return RandomNet(NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2)])).double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.2])[:, None, None, None]


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_it_is_the_mean_of_explanations_of_noisy_copies(model, x):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.1"])
    found = fxlrp.smooth(explainer, x, target=2, samples=5, noise=0.2, generator=seeded())
    generator, each = seeded(), []
    span = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    for _ in range(5):
        each.append(explainer(x + 0.2 * span * torch.randn(x.shape, generator=generator, dtype=x.dtype), target=2))
    assert_close(found.relevance, torch.stack([e.relevance for e in each]).mean(0))
    assert_close(found.start, torch.stack([e.start for e in each]).mean(0))
    assert_close(found.checkpoints["blocks.1"], torch.stack([e.checkpoints["blocks.1"] for e in each]).mean(0))
    assert torch.equal(found.output, model(x))


def test_what_is_averaged_is_conserved(model, x):
    found = fxlrp.smooth(fxlrp.compile(model, "conserving", checkpoints=["head"]), x, samples=7)
    assert_close(found.relevance.sum((1, 2, 3)), found.start)
    assert_close(found.checkpoints["head"].sum(1), found.start)


def test_the_class_is_that_of_the_clean_input(model, x):
    explainer = fxlrp.compile(model, "conserving", start="one")
    predicted = model(x).argmax(1)
    generator = seeded(1)
    drawn = [5.0 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(8)]
    span = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    others = torch.stack([model(x + span * noise).argmax(1) for noise in drawn])
    assert (others != predicted).any()
    found = fxlrp.smooth(explainer, x, samples=8, noise=5.0, generator=seeded(1))
    assert torch.equal(found.target, predicted)
    same = fxlrp.smooth(explainer, x, predicted, samples=8, noise=5.0, generator=seeded(1))
    assert torch.equal(found.relevance, same.relevance)


def test_it_can_be_had_again_and_in_parts_of_any_size(model, x):
    explainer = fxlrp.compile(model, "conserving")
    first = fxlrp.smooth(explainer, x, samples=6, generator=seeded(3)).relevance
    assert torch.equal(fxlrp.smooth(explainer, x, samples=6, generator=seeded(3)).relevance, first)
    for size in (1, 3, 7, 12):
        assert_close(fxlrp.smooth(explainer, x, samples=6, generator=seeded(3), batch_size=size).relevance, first)
    assert not torch.equal(fxlrp.smooth(explainer, x, samples=6, generator=seeded(4)).relevance, first)
    torch.manual_seed(3)
    assert torch.equal(fxlrp.smooth(explainer, x, samples=6).relevance, first)


def test_no_more_is_explained_at_once_than_asked_for(model, x):
    explainer = fxlrp.compile(model, "conserving")
    sizes = []
    explainer.graph_module.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    fxlrp.smooth(explainer, x, samples=5, batch_size=8)
    assert sizes == [3, 6, 6, 3]


def test_without_noise_it_is_the_explanation(model, x):
    explainer = fxlrp.compile(model, "conserving")
    explanation, still = explainer(x), fxlrp.smooth(explainer, x, samples=3, noise=0)
    assert_close(still.relevance, explanation.relevance)
    assert_close(still.start, explanation.start)
    assert still.by_input.keys() == explanation.by_input.keys()


def test_an_item_without_a_range_gets_no_noise(model):
    explainer, x = fxlrp.compile(model, "conserving"), torch.ones(1, 3, 8, 8, dtype=torch.float64)
    assert_close(fxlrp.smooth(explainer, x, samples=3).relevance, explainer(x).relevance)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.side, self.head = nn.Embedding(9, 6), nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, side, other, ids, power=1):
        return self.head((self.side(side) + self.side(other) + self.words(ids).sum(1)) ** power).flatten()


def test_several_inputs_have_their_own_noise_and_further_arguments_none():
    model, ids = Words().double().eval(), torch.randint(0, 9, (2, 5))
    side, other = torch.randn(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    explainer = fxlrp.compile(model, "cp_lrp", start="output")
    found = fxlrp.smooth(explainer, (side, other), additional_forward_args=(ids, 2), samples=3, generator=seeded())
    generator, each = seeded(), []
    for _ in range(3):
        noise = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        torch.randn(2, 4, generator=generator, dtype=torch.float64)  # of the input of zeros, whose range is none
        span = side.amax(1, keepdim=True) - side.amin(1, keepdim=True)
        each.append(explainer(side + 0.15 * span * noise, other, ids, power=2))
    assert found.target is None
    for name, relevance in found.by_input.items():
        assert_close(relevance, torch.stack([e.by_input[name] for e in each]).mean(0))


def test_it_can_be_differentiated_where_the_explainer_can(model, x):
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    leaf = x.clone().requires_grad_()
    fxlrp.smooth(explainer, leaf, samples=2).relevance.square().sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()
    assert not fxlrp.smooth(fxlrp.compile(model, "conserving"), leaf, samples=2).relevance.requires_grad


def test_noise_on_token_numbers_is_refused():
    explainer = fxlrp.compile(Words().eval(), "conserving", start="output")
    with pytest.raises(InputError, match=r"noise cannot be added to integers, as torch\.int64 holds"):
        fxlrp.smooth(explainer, (torch.randn(2, 4), torch.randn(2, 4), torch.zeros(2, 3, dtype=torch.long)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number of at least 1, not 0"),
        ({"samples": 2.0}, "samples must be a whole number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"noise": -0.1}, "noise must be a number of at least 0, not -0.1"),
        ({"noise": float("nan")}, "noise must be"),
    ],
)
def test_options_that_cannot_be_are_told(model, x, options, message):
    with pytest.raises(InputError, match=message):
        fxlrp.smooth(fxlrp.compile(model, "conserving"), x, **options)


def test_inputs_and_targets_are_checked_as_ever(model, x):
    explainer = fxlrp.compile(model, "conserving")
    with pytest.raises(InputError, match="a tuple of tensors, not list"):
        fxlrp.smooth(explainer, [x])
    with pytest.raises(InputError, match="the model takes 4 axes"):
        fxlrp.smooth(explainer, x[0])
    with pytest.raises(TargetError, match="class 9 is out of range"):
        fxlrp.smooth(explainer, x, target=9)
