"""Explanations as functions to differentiate: by inputs, by parameters, and as a loss to train with."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from token_nets import FEEDS, MIXERS, NORMS, WIDTH, Attention, Tokens
from token_nets import Block as TokenBlock
from torch import nn

import fxlrp
from fxlrp.rules import Epsilon, SignedSplit

PRESETS = {name: fxlrp.PRESETS[name] for name in ("conserving", "otsuki2024", "attnlrp", "cp_lrp")}
COMPOSITES = [name for name in fxlrp.PRESETS if name not in (*PRESETS, "otsuki2024_mixture")]
PRESETS["epsilon"] = fxlrp.Preset("epsilon", linear=Epsilon(1e-2), split=SignedSplit(1e-2))


class Images(nn.Module):
    """Batch norm, both pools, an identity and a projection join."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.down, self.project = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)
        self.head = nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = x + self.conv2(F.relu(self.conv1(x)))
        x = F.avg_pool2d(x, 3, 1, 1)
        x = F.relu(self.down(x)) + self.project(x)
        return self.head(F.gelu(x).mean((2, 3)))


def assert_gradients(model, x, preset, **options):
    """Those of relevance, by the input and by every parameter, are what differences say."""
    model = model.double().eval()
    explainer = fxlrp.compile(model, preset, differentiable=True, **options)
    target = torch.zeros(len(x), dtype=torch.long)
    arguments = (x.double().requires_grad_(), *model.parameters())
    # Projected at random, for the time that whole Jacobians take; the model's own tensors are moved in place.
    assert torch.autograd.gradcheck(
        lambda x, *parameters: explainer(x, target=target).relevance, arguments,
        fast_mode=True, check_undefined_grad=False, rtol=1e-3, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(("preset", "start"), [("conserving", "logit"), *((name, "probability") for name in PRESETS)])
def test_gradients_of_relevance_of_images(preset, start):
    assert_gradients(Images(), torch.randn(2, 2, 6, 6), PRESETS[preset], start=start)


@pytest.mark.parametrize("preset", COMPOSITES)
def test_gradients_of_relevance_under_the_composites(preset):
    # The first convolution takes two channels; a box must hold the input.
    chosen = fxlrp.presets.epsilon_gamma_box(-5, 5) if preset == "epsilon_gamma_box" else fxlrp.PRESETS[preset]
    assert_gradients(Images(), torch.randn(2, 2, 6, 6), chosen, start="logit")


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_of_relevance_of_tokens(preset):
    model = Tokens(TokenBlock(Attention()), token=True)
    assert_gradients(model, torch.randn(2, 6, WIDTH), PRESETS[preset])


# Of linear attention ε rules are steep beside what a difference can tell.
PARTS = [("mixer", name) for name in MIXERS if name not in ("softmax", "linear")]
PARTS += [("feed", name) for name in FEEDS] + [("norm", name) for name in NORMS]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("part", "name"), PARTS)
def test_gradients_through_every_kind_of_block(part, name, preset):
    mixer = MIXERS[name]() if part == "mixer" else Attention()
    norm = NORMS[name] if part == "norm" else nn.LayerNorm
    feed = FEEDS[name]() if part == "feed" else None
    assert_gradients(Tokens(TokenBlock(mixer, norm, feed)), torch.randn(2, 6, WIDTH), PRESETS[preset], start="logit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", ["conserving", "otsuki2024"])
def test_gradients_are_finite_where_nothing_is_there(preset, dtype):
    """An image of zeros, half a one, and units that never fire: denominators vanish, gradients do not explode."""
    plan = NetPlan([BlockPlan(), BlockPlan(skip="padded", stride=2, planes=8), BlockPlan(groups=4, squeeze=True)])
    model, x = RandomNet(plan).to(dtype).eval(), torch.randn(3, 3, 8, 8, dtype=dtype)
    x[1], x[2, :, :4] = 0, 0
    explainer = fxlrp.compile(model, preset, differentiable=True)
    explainer(x.requires_grad_()).relevance.square().sum().backward()
    for tensor in (x, *model.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() < 1e3


def test_a_loss_on_relevance_trains():
    model, x = Images().eval(), torch.randn(8, 2, 6, 6)
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    # As if the upper half of each image were not to matter.
    shares = []
    for _ in range(20):
        explanation = explainer(x, target=0)
        shares.append(explanation.relevance[:, :, :3].sum() / explanation.start.sum())
        optimizer.zero_grad()
        shares[-1].backward()
        optimizer.step()
    assert shares[-1] < 0.8 * shares[0]


def test_one_pass_gives_output_and_relevance_to_train_with():
    model, x, classes = Images().double().eval(), torch.randn(4, 2, 6, 6).double(), torch.tensor([0, 1, 2, 0])
    explanation = fxlrp.compile(model, "conserving", differentiable=True)(x, target=classes)
    both = torch.autograd.grad(F.cross_entropy(explanation.output, classes), list(model.parameters()))
    alone = torch.autograd.grad(F.cross_entropy(model(x), classes), list(model.parameters()))
    for ours, theirs in zip(both, alone, strict=True):
        assert_close(ours, theirs)


def test_a_converted_explainer_hands_gradients_to_its_model():
    model, x = Images().eval(), torch.randn(2, 2, 6, 6)
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    expected = torch.autograd.grad(explainer(x).relevance.square().sum(), list(model.parameters()))
    found = torch.autograd.grad(explainer.double()(x.double()).relevance.square().sum(), list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 1e-3)


def tensors(explanation):
    return [explanation.relevance, explanation.output, explanation.start, *explanation.checkpoints.values()]


def test_no_graph_is_kept_without_it():
    model, x = Images().eval(), torch.randn(2, 2, 6, 6, requires_grad=True)
    for explanation in (
        fxlrp.compile(model, "conserving", checkpoints=["head"])(x),
        fxlrp.compile(model, "conserving", checkpoints=["head"]).double()(x.double()),
    ):
        assert all(value.grad_fn is None and not value.requires_grad for value in tensors(explanation))
    differentiable = fxlrp.compile(model, "conserving", checkpoints=["head"], differentiable=True)
    assert all(value.requires_grad for value in tensors(differentiable(x)))
    with torch.no_grad():
        assert not any(value.requires_grad for value in tensors(differentiable(x)))


class Saved:
    def __init__(self, value):
        self.value = value


def test_a_graph_goes_when_the_explanation_goes():
    """What the explainer itself keeps holds no values of a call."""
    model, x = Images().eval(), torch.randn(2, 2, 6, 6)
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    saved = []

    def pack(value):
        kept = Saved(value.detach())  # with its own graph it would keep itself
        saved.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
        explanation = explainer(x)
    assert sum(kept() is not None for kept in saved) > 20
    del explanation
    assert all(kept() is None for kept in saved)
