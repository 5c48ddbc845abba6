"""Whatever is asked of the optimiser, explanations stay the same, and the output of the model stays so to the bit."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from optimize_checks import (
    ALONE,
    ANY_CHOICE,
    CHOICES,
    DOUBLE,
    PRESETS,
    SEEDS,
    TOKEN_PRESETS,
    assert_changes_nothing,
    assert_same,
    chosen_preset,
    explained,
    limit_of,
    presets_beside,
)
from optimize_nets import image_net_plans, network_for, random_net, random_tokens, seeded_weights, signed, tour
from stacks import stack, stack_plans
from strategies import net_plans, token_net_plans
from torch import nn

import fxlrp
from fxlrp.passes.optimize import NAMES
from fxlrp.rules import LinearRule, Part, ZPlus
from fxlrp.steps import primitives
from fxlrp.steps.primitives import primitive


@functools.cache
def plainly(preset, dtype=DOUBLE):
    """A network, images and their explanation by the graph as the rules wrote it."""
    model, x = network_for(preset, dtype)
    return model, x, explained(model, x, optimize=False, preset=preset)


EACH = [("conserving", choice) for choice in CHOICES]
EACH += [("attnlrp", f"{name} alone") for name in ("single_branch", "share_steps", "fold_weights", "reuse_memory")]
OTHERS = [(preset, choice) for preset in (*PRESETS, "attnlrp") for choice in CHOICES if (preset, choice) not in EACH]


@pytest.mark.parametrize(("preset", "choice"), EACH + [
    pytest.param(preset, choice, marks=[] if choice in ("all", "the default") else pytest.mark.slow)
    for preset, choice in OTHERS
])  # fmt: skip
def test_every_choice_gives_the_same_explanation(preset, choice):
    model, x, plain = plainly(preset)
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=CHOICES[choice])
    for _ in range(2):  # the second call runs on what the first one kept
        assert_same(explainer(x), plain, 1e-12)


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "attnlrp"])
def test_single_precision_gives_the_same_explanation(preset):
    model, x, plain = plainly(preset, torch.float32)
    forms = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    explainer = fxlrp.compile(model, preset)
    for image in forms:
        assert_same(explainer(image), plain, 1e-5)


@examples(fast=6, slow=300)
@given(image_net_plans(), ANY_CHOICE, presets_beside(*sorted(PRESETS)), st.booleans(), SEEDS)
def test_random_residual_networks_are_explained_the_same(plan, optimize, preset, zeros, seed):
    model, x = random_net(plan, seed, zeros=zeros)
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@examples(fast=5, slow=200)
@given(token_net_plans(), ANY_CHOICE, TOKEN_PRESETS, SEEDS)
def test_random_networks_of_tokens_are_explained_the_same(plan, optimize, preset, seed):
    model, x = random_tokens(plan, seed)
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@examples(fast=12, slow=300)
@given(stack_plans(), ANY_CHOICE, presets_beside("conserving", "epsilon_plus", "otsuki2024"), SEEDS)
def test_random_convolutions_are_explained_the_same(plan, optimize, preset, seed):
    model, x = stack(plan, seed=seed)
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@pytest.mark.slow
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_networks_of_real_size_are_explained_the_same(name, form):
    import torchvision

    model, x = seeded_weights(torchvision.models.get_model(name)), torch.randn(2, 3, 64, 64).to(memory_format=form)
    plain = explained(model, x, optimize=False)
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(3):
        explanation = explainer(x)
        assert torch.equal(explanation.output, model(x))
        assert_same(explanation, plain)


def centred(output, target):
    return output - output.mean(1, keepdim=True)


@pytest.mark.parametrize("optimize", [NAMES, ("known_sums", "reuse_memory")], ids=len)
@pytest.mark.parametrize("start", ["logit", "one", centred])
def test_starts_of_either_sign_and_checkpoints_stay_the_same(start, optimize):
    model, x = tour()
    assert_changes_nothing(model, x, optimize=optimize, start=start, checkpoints=("down", "stem", "head"))


@pytest.mark.parametrize("split", ["symmetric", "signed", "residual"])
def test_every_split_gives_the_same_explanation(split):
    model, x = tour()
    assert_changes_nothing(model, x, optimize=NAMES, split=split, identity_skips=split != "symmetric")


@pytest.mark.parametrize(
    ("bias", "vanishing"), [("ignore", "spread"), ("absorb", "rescale"), ("share", "rescale"), ("share", "absorb")]
)
def test_every_treatment_of_bias_and_vanishing_denominators_stays_the_same(bias, vanishing):
    model, x = tour()
    rules = {pattern: ZPlus(bias=bias, vanishing=vanishing) for pattern in ("twice", "down", "grouped", "up", "head")}
    rules["stem"] = fxlrp.rules.WPlus(bias=bias, vanishing=vanishing)
    assert_changes_nothing(model, x, optimize=NAMES, rules=rules)


@examples(fast=2, slow=100)
@given(net_plans(), st.sampled_from(sorted(CHOICES)))
def test_several_targets_and_conditions_are_explained_the_same(plan, choice):
    model, x = random_net(plan)
    plain = fxlrp.compile(model, "conserving", optimize=False)
    optimized = fxlrp.compile(model, "conserving", optimize=CHOICES[choice])
    targets = torch.tensor([[0, 1, 2], [2, 2, 4]])
    conditions = [{"stem": [0]}, {"stem": [1, 3]}, {"stem": []}]
    for options in ({"target": targets}, {"conditions": conditions}, {"target": [0, 1, 2], "conditions": conditions}):
        assert_same(optimized(x, **options), plain(x, **options))
    assert_same(optimized(x, conditions=conditions[0]), plain(x, conditions=conditions[0]))
    assert_same(optimized(x), plain(x))  # a single one after many


@pytest.mark.parametrize(("preset", "dtype"), [
    ("conserving", torch.bfloat16), ("conserving", torch.float16), ("epsilon_plus", torch.float16),
    ("attnlrp", torch.bfloat16),
])  # fmt: skip
def test_models_of_half_precision_are_explained_the_same(preset, dtype):
    model, x = network_for(preset, torch.float32)
    model, x = model.to(dtype), x.to(dtype)
    # Relevance is computed in single precision, of which ε rules keep less.
    limit = 1e-5 if preset == "conserving" else 1e-4
    explainer = assert_changes_nothing(model, x, optimize=True, preset=preset, start="logit", limit=limit)
    assert torch.equal(explainer(x).output, model(x))
    ledger = explainer.ledger(x)
    largest = torch.stack([row.received.abs() for row in ledger]).amax(0)
    for row in ledger:
        assert (row.error.abs() <= 1e-5 * largest).all(), f"{row.node} loses {row.error / largest}"


def test_autocast_and_full_precision_may_take_turns():
    model, x = tour(torch.float32)
    plain, optimized = fxlrp.compile(model, "conserving", optimize=False), fxlrp.compile(model, "conserving")
    for _ in range(2):
        assert_same(optimized(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(optimized(x), plain(x))


@pytest.mark.slow
def test_recurrent_networks_are_explained_the_same():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(F.relu(self.lstm(x)[0]).mean(1))

    assert_changes_nothing(Recurrent().double().eval(), torch.randn(2, 3, 4, dtype=DOUBLE), optimize=NAMES)


class _Checked(nn.Module):
    """A model behind a check that symbolic tracing cannot follow."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("channels")
        return self.model(x)


def test_exported_graphs_are_explained_the_same():
    model, x = tour()
    explainer = fxlrp.compile(_Checked(model).eval(), "epsilon_plus", example_inputs=x)
    assert explainer.capture == "export"
    for _ in range(2):
        assert_same(explainer(x), explained(model, x, optimize=False, preset="epsilon_plus"))


def test_several_inputs_are_explained_the_same():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.images, self.rows = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, image, row):
            return self.head(F.relu(self.images(image)).mean((2, 3)) + F.relu(self.rows(row)))

    model = Two().double().eval()
    images = [torch.randn(batch, 3, 6, size, dtype=DOUBLE) for batch, size in ((2, 6), (3, 8), (2, 6))]
    explainer = fxlrp.compile(model, "conserving")
    for image in images:
        row = torch.randn(len(image), 5, dtype=DOUBLE)
        assert_same(explainer(image, row), explained(model, image, row, optimize=False))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("choice", ["the default", "reuse_memory alone", "pack_weights alone", "share_steps alone"])
def test_the_output_of_the_model_is_the_same_to_the_bit(choice, form):
    model, x = tour(torch.float32)
    model, x = model.to(memory_format=form), x.to(memory_format=form)
    explainer = fxlrp.compile(model, "conserving", optimize=CHOICES[choice])
    for image in (x, x, x.contiguous()):
        assert torch.equal(explainer(image).output, model(image))


@examples(fast=3, slow=100)
@given(net_plans(), st.booleans())
def test_the_output_of_random_networks_is_the_same_to_the_bit(plan, channels_last):
    model, x = random_net(plan, dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(2):
        assert torch.equal(explainer(x).output, model(x))


@primitive
def relative(weight):
    """Weights beside the largest: a step that looks at numbers when it runs."""
    largest = float(weight.abs().max())
    return weight / largest if largest else weight


class Relative(LinearRule):
    def parts(self, layer):
        return [Part(layer.term(layer.x, relative))]


@pytest.mark.parametrize("choice", ["transposes_as_convolutions alone", "fold_weights alone", "the default"])
def test_a_step_may_read_the_weights_when_it_runs(choice):
    model, x = signed()
    assert_changes_nothing(model, x, optimize=CHOICES[choice], rules={"known": Relative(stabilizer=1e-6)})


class OnlyPositiveInputs(LinearRule):
    keeps_sign = False

    def parts(self, layer):
        return [Part(layer.term(primitives.positive(layer.x), primitives.positive), layer.bias)]


@pytest.mark.parametrize("choice", [*ALONE, "all"])
def test_a_custom_rule_gives_the_same_explanation(choice):
    model, x = signed()
    rule = OnlyPositiveInputs(vanishing="rescale", bias="share")
    assert_changes_nothing(model, x, optimize=CHOICES[choice], rules={"signed": rule, "head": rule})
