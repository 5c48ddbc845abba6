"""``reuse_memory``: no step overwrites what is read later, or what is not the program's own."""

import operator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from optimize_checks import (
    DOUBLE,
    SEEDS,
    TOKEN_PRESETS,
    assert_changes_nothing,
    assert_same,
    chosen_preset,
    explained,
    presets_beside,
)
from optimize_nets import SMALL, attention, network_for, random_net, random_tokens, tour
from stacks import stack, stack_plans
from strategies import net_plans, token_net_plans
from torch import nn
from watched import assert_reads_what_was_made

import fxlrp
from fxlrp.passes.optimize import NAMES, REUSE_MEMORY, in_place
from fxlrp.rules import Shares
from fxlrp.rules.join import SplitRule
from fxlrp.steps import declaration
from fxlrp.steps.addition import ratio, ratio_split, signed_split
from fxlrp.steps.batch_axis import rescale_signed_to, rescale_to
from fxlrp.steps.declaration import declare, facts_of
from fxlrp.steps.primitives import divide
from fxlrp.steps.routing import unreshape
from fxlrp.steps.torch_functions import ACTIVATIONS

WRITING = (
    operator.mul, operator.add, operator.sub, divide, rescale_to, rescale_signed_to, ratio_split, signed_split,
    *(getattr(torch.ops.aten, name).default for name in ACTIVATIONS),
)  # fmt: skip
INTO = {facts_of(step).writes_into.step for step in WRITING}
OTHERS = tuple(name for name in NAMES if name != REUSE_MEMORY)


def writing(explainer):
    """The steps of a program that write into an operand."""
    return [node for node in explainer.graph.nodes if node.target in INTO]


def assert_same_to_the_bit(explanation, plain):
    for name, relevance in plain.by_input.items():
        assert torch.equal(explanation.by_input[name], relevance)
    assert torch.equal(explanation.start, plain.start)
    assert torch.equal(explanation.output, plain.output)
    for name, relevance in plain.checkpoints.items():
        assert torch.equal(explanation.checkpoints[name], relevance)


def assert_memory_makes_no_difference(model, *inputs, exact=True, **options):
    """The same with and without; to the bit, unless values of several layouts meet, which add up in another order."""
    first = assert_same_to_the_bit if exact else assert_same
    for others, same in (((), first), (("known_sums",), first), (OTHERS, assert_same)):
        plain = explained(model, *inputs, optimize=others, **options)
        explainer = fxlrp.compile(
            model, chosen_preset(options.get("preset", "conserving")), optimize=(*others, REUSE_MEMORY),
            **{name: value for name, value in options.items() if name != "preset"},
        )  # fmt: skip
        assert_reads_what_was_made(explainer, *inputs)
        for _ in range(2):
            same(explainer(*inputs), plain)


@examples(fast=2, slow=200)
@given(
    net_plans(), st.sampled_from(["probability", "logit"]), presets_beside("conserving", slow_without=["otsuki2024"]),
    st.booleans(), SEEDS,
)  # fmt: skip
def test_random_residual_networks_are_explained_the_same_to_the_bit(plan, start, preset, zeros, seed):
    assert_memory_makes_no_difference(*random_net(plan, seed, zeros=zeros), start=start, preset=preset)


@examples(fast=4, slow=150)
@given(stack_plans(), presets_beside("conserving", "epsilon_plus_flat", slow_without=["otsuki2024"]), SEEDS)
def test_random_convolutions_are_explained_the_same_to_the_bit(plan, preset, seed):
    assert_memory_makes_no_difference(*stack(plan, seed=seed), preset=preset)


@examples(fast=1, slow=150)
@given(token_net_plans(), TOKEN_PRESETS, SEEDS)
def test_random_networks_of_tokens_are_explained_the_same(plan, preset, seed):
    assert_memory_makes_no_difference(*random_tokens(plan, seed), exact=False, preset=preset)


SLOWLY = [pytest.param(split, marks=pytest.mark.slow) for split in ("signed", "residual", "skip")]


@pytest.mark.parametrize("split", ["ratio", "symmetric", *SLOWLY])
def test_memory_is_reused_safely_under_every_split(split):
    model, x = tour()
    assert_memory_makes_no_difference(model, x, split=split, checkpoints=("up", "stem"))


@pytest.mark.parametrize("preset", [
    "conserving", "epsilon_plus", "attnlrp",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("otsuki2024", "epsilon_gamma_box")),
])  # fmt: skip
def test_memory_is_reused_safely_under_every_preset(preset):
    assert_memory_makes_no_difference(*network_for(preset), preset=preset)


def test_images_in_channels_last_are_explained_the_same():
    model, x = tour(torch.float32)
    x = x.to(memory_format=torch.channels_last)
    explainer, plain = fxlrp.compile(model, "conserving"), explained(model, x, optimize=OTHERS)
    assert_reads_what_was_made(explainer, x)
    assert_same(explainer(x), plain)


def test_some_memory_is_reused():
    # Otherwise the tests above say nothing.
    model, _ = tour()
    names = {node.target.__name__ for node in writing(fxlrp.compile(model, "conserving"))}
    assert {"divide_into", "rescale_into", "ratio_split_into", "multiply_into", "relu_into"} <= names
    assert not writing(fxlrp.compile(model, "conserving", optimize=OTHERS))


class Several(nn.Module):
    """Returns what it computes on the way, its input and a weight, all of which are read by a step that could write."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("mask", torch.rand(4, 1, 1))

    def forward(self, x):
        early = F.relu(x)
        a = self.stem(x + early)
        b = F.relu(a)
        c = self.conv(b)
        d = F.relu(c * self.mask)
        logits = self.head((b + d).mean((2, 3)))
        return logits, a, b, c.flatten(1), d[:, 1:], x, early, self.conv.weight, self.mask


def test_intermediate_results_that_the_model_returns_stay():
    model, x = Several().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", output=0)
    for _ in range(2):
        for got, expected in zip(explainer(x).output, model(x), strict=True):
            assert torch.equal(got, expected)
    assert_same(explainer(x), explained(model, x, optimize=False, output=0))


@pytest.mark.parametrize("network", [tour, attention])
@pytest.mark.parametrize("optimize", [NAMES, (REUSE_MEMORY,)], ids=len)
def test_inputs_weights_and_earlier_explanations_stay(network, optimize):
    model, x = network()
    image, target = x.clone(), torch.tensor([0, 1, 2])[: len(x)]
    state = {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    checkpoints = ("down", "project", "head") if network is tour else ("blocks.0", "head")
    explainer = fxlrp.compile(model, "conserving", optimize=optimize, checkpoints=checkpoints)
    explanations = [explainer(x, target=target) for _ in range(2)]
    kept = [_tensors(explanation) for explanation in explanations]
    before = [[tensor.clone() for tensor in tensors] for tensors in kept]
    for other in (x, 2 * x, x[:1], x.flip(0)):
        explainer(other)
        explainer(other, target=[0, 1])
        if other.dim() == 4:
            explainer.heatmap(other)
    assert torch.equal(x, image)
    assert x._version == 0 or network is tour  # where an item was set to zero
    assert torch.equal(target, torch.tensor([0, 1, 2])[: len(x)])
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, state[name][0])
        assert value._version == state[name][1]
    for tensors, copies in zip(kept, before, strict=True):
        assert all(map(torch.equal, tensors, copies))


def _tensors(explanation):
    return [explanation.output, explanation.start, *explanation.by_input.values(), *explanation.checkpoints.values()]


def test_an_input_that_is_a_view_stays():
    model, x = tour()
    rows = x[:1].expand(3, -1, -1, -1)
    wide = torch.randn(3, 6, 16, 16, dtype=DOUBLE)
    for image in (rows, wide[:, ::2], x.transpose(2, 3)):
        before = image.clone()
        assert_same(explained(model, image, optimize=NAMES), explained(model, image.contiguous(), optimize=False))
        assert torch.equal(image, before)


def test_an_input_that_an_activation_reads_stays():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(F.relu(x).sigmoid())).mean((2, 3)))

    model, x = Early().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    before = x.clone()
    assert_memory_makes_no_difference(model, x)
    assert torch.equal(x, before)


def test_a_start_may_return_the_output():
    model, x = tour()
    assert_memory_makes_no_difference(model, x, start=lambda output, target: output[:])


def test_a_start_may_keep_what_it_returns():
    model, x = tour()
    ones = torch.ones(3, 5, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: ones)
    first = explainer(x)
    assert torch.equal(ones, torch.ones_like(ones))
    assert_same_to_the_bit(explainer(x), first)


class Turned(SplitRule):
    """Looks at relevance with its axes swapped before and after relevance itself is read for the last time."""

    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        turned = part.mT
        other = turned * ratio(skip, residual)
        return Shares([part + other, relevance - turned])


class Symmetrised(SplitRule):
    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        half = 0.5 * (part + part.mT)
        return Shares([half, relevance - half])


class TurnedByMethod(SplitRule):
    """The same by a method."""

    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        turned = part.transpose(-1, -2)
        other = turned * ratio(skip, residual)
        return Shares([part + other, relevance - turned])


@pytest.mark.parametrize("rule", [Turned, Symmetrised, TurnedByMethod])
def test_a_value_that_has_a_view_is_not_overwritten(rule):
    model, x = random_net(SMALL)
    for optimize in ((REUSE_MEMORY,), NAMES):
        explainer = assert_changes_nothing(model, x, optimize=optimize, split=rule())
        assert_reads_what_was_made(explainer, x)


def test_overwriting_a_value_that_is_read_later_is_noticed(monkeypatch):
    model, x = Several().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    assert_reads_what_was_made(fxlrp.compile(model, "conserving", output=0), x)
    monkeypatch.setattr(in_place, "_ends_at", lambda value, node, order: True)
    with pytest.raises(AssertionError, match="overwritten"):
        assert_reads_what_was_made(fxlrp.compile(model, "conserving", output=0), x)


def test_a_view_declared_as_new_memory_is_noticed(monkeypatch):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x)
            rows = x.flatten(2)
            return self.head(F.relu(rows).mean(2) + x.mean((2, 3)))

    monkeypatch.setattr(unreshape, "step_facts", replace(unreshape.step_facts, fresh=True))
    monkeypatch.setattr(declaration, "_OF_OTHERS", dict(declaration._OF_OTHERS))
    declare([torch.ops.aten.flatten.using_ints], fresh=True)
    model, x = Viewed().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    with pytest.raises(AssertionError):
        assert_memory_makes_no_difference(model, x)
