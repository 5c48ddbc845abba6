"""The optimiser: what is explained stays as it is, and each pass does what it says."""

import copy
import functools
import pickle
from dataclasses import replace
from operator import getitem

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, tolerance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import BlockPlan, NetPlan, RandomNet
from optimize_nets import (
    ALONE,
    CHOICES,
    PRESETS,
    SMALL,
    LayerPlan,
    StackPlan,
    assert_changes_nothing,
    assert_same,
    attention,
    calls,
    chosen_preset,
    explained,
    image_net_plans,
    seeded_weights,
    signed,
    stack,
    stack_plans,
    tour,
)
from strategies import net_plans, token_net_plans
from token_nets import WIDTH, Attention, Block, Fused, RandomTokens, Tokens
from torch import fx, nn

import fxlrp
from fxlrp.errors import FxlrpError, OptimizeError
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize import DEFAULT, FOLD_NORMS, NAMES, chosen, transposes
from fxlrp.rules import Epsilon, LinearRule, Part, ZPlus
from fxlrp.steps import batch_axis, primitives
from fxlrp.steps import convolution as convolutions
from fxlrp.steps.primitives import primitive

DOUBLE = torch.float64
aten = torch.ops.aten


def steps(graph):
    """Every step of a graph as text."""
    return [node.format_node() for node in graph.nodes]


# Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [None, 3])
def test_what_is_neither_a_truth_nor_names_is_an_error(optimize):
    with pytest.raises(OptimizeError, match="give True, False, or some of 'single_branch'"):
        fxlrp.compile(tour()[0], optimize=optimize)


@pytest.mark.parametrize("asked", ["fold", ["fold_weights", "unrolling"], ["single_branch", 3]])
def test_an_unknown_name_is_told_and_the_known_ones_are_listed(asked):
    model, _ = signed()
    with pytest.raises(OptimizeError) as error:
        fxlrp.compile(model, optimize=asked)
    assert isinstance(error.value, FxlrpError)
    assert all(repr(name) in str(error.value) for name in NAMES)


def test_names_are_taken_in_the_order_in_which_they_run():
    assert chosen(reversed(NAMES)) == NAMES
    assert chosen("fold_weights") == chosen(["fold_weights", "fold_weights"]) == ("fold_weights",)
    assert chosen([]) == chosen(False) == ()
    assert chosen(True) == DEFAULT
    assert set(NAMES) - set(DEFAULT) == {FOLD_NORMS}


def test_without_optimisation_the_graph_is_as_the_rules_wrote_it():
    model, _ = tour()
    explainer = fxlrp.compile(model, optimize=False)
    assert steps(explainer.graph) == steps(explainer.emitted)


def test_the_emitted_graph_is_there_to_be_looked_at_whatever_runs():
    model, _ = tour()
    rules = ("single_branch", "reuse_forward")  # what is known to rules while they write
    optimized, plain = fxlrp.compile(model), fxlrp.compile(model, optimize=rules)
    assert [node.name for node in optimized.emitted.nodes] == [node.name for node in plain.graph.nodes]


@pytest.mark.parametrize("asked", [False, True, ("known_sums", "reuse_memory")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda explainer: pickle.loads(pickle.dumps(explainer))])
def test_copies_are_optimised_alike(asked, copied):
    model, x = signed()
    explainer = fxlrp.compile(model, optimize=asked)
    explanation = explainer(x)
    twin = copied(explainer)
    assert steps(twin.graph) == steps(explainer.graph)
    assert torch.equal(twin(x).relevance, explanation.relevance)


# Results stay as they are ---------------------------------------------------------------------------


def limit_of(preset):
    """How far rounding may lead: ε rules and ε splits are steep, and carry it on."""
    return 1e-12 if preset in ("conserving", "otsuki2024") else 1e-10


@functools.cache
def plainly(network, preset, dtype=DOUBLE):
    """A network, images and their explanation by the graph as the rules wrote it."""
    model, x = network(dtype)
    return model, x, explained(model, x, optimize=False, preset=preset)


EACH = [("conserving", choice) for choice in CHOICES]
EACH += [("attnlrp", f"{name} alone") for name in ("single_branch", "share_steps", "fold_weights", "reuse_memory")]
OTHERS = [(preset, choice) for preset in (*PRESETS, "attnlrp") for choice in CHOICES if (preset, choice) not in EACH]


@pytest.mark.parametrize(("preset", "choice"), EACH + [
    pytest.param(preset, choice, marks=[] if choice in ("all", "the default") else pytest.mark.slow)
    for preset, choice in OTHERS
])  # fmt: skip
def test_every_choice_explains_alike(preset, choice):
    model, x, plain = plainly(attention if preset == "attnlrp" else tour, preset)
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=CHOICES[choice])
    for _ in range(2):  # the second call runs on what the first one kept
        assert_same(explainer(x), plain, 1e-12)


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "attnlrp"])
def test_in_single_precision_as_well(preset):
    model, x, plain = plainly(attention if preset == "attnlrp" else tour, preset, torch.float32)
    forms = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    explainer = fxlrp.compile(model, preset)
    for image in forms:
        assert_same(explainer(image), plain, 1e-5)


@settings(max_examples=6)
@given(image_net_plans(), st.sampled_from(sorted(CHOICES)), st.sampled_from(sorted(PRESETS)), st.booleans())
def test_random_residual_graphs_are_explained_alike(plan, choice, preset, zeros):
    assert_a_random_net_is_explained_alike(plan, CHOICES[choice], preset, zeros)


def assert_a_random_net_is_explained_alike(plan, optimize, preset, zeros, seed=0):
    torch.manual_seed(seed)
    model, x = RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    if zeros:
        x[1] = 0
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@settings(max_examples=5)
@given(token_net_plans(), st.sampled_from(sorted(CHOICES)), st.sampled_from(["conserving", "attnlrp", "cp_lrp"]))
def test_random_networks_of_tokens_are_explained_alike(plan, choice, preset):
    torch.manual_seed(0)
    model, x = RandomTokens(plan).double().eval(), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE)
    assert_changes_nothing(model, x, optimize=CHOICES[choice], preset=preset, limit=limit_of(preset))


ONE, THREE = LayerPlan((1, 1), (1, 1), (0, 0), (1, 1)), LayerPlan((3, 3), (1, 1), (1, 1), (1, 1))

STACKS = {
    "kernels of one place at a stride": StackPlan((9, 11), [replace(ONE, stride=(3, 2))] * 2),
    "of one place, padded": StackPlan((9, 11), [replace(ONE, stride=(2, 2), padding=(1, 1))]),
    "a patch embedding": StackPlan((16, 16), [LayerPlan((4, 4), (4, 4), (0, 0), (1, 1))]),
    "patches with a rest": StackPlan((15, 18), [LayerPlan((4, 4), (4, 4), (0, 0), (1, 1))]),
    "a stride beyond the kernel": StackPlan((13, 14), [LayerPlan((5, 5), (6, 6), (1, 1), (1, 1))]),
    "a stem": StackPlan((17, 20), [LayerPlan((7, 7), (2, 2), (3, 3), (1, 1))] * 2),
    "neither square": StackPlan((11, 9), [LayerPlan((1, 5), (2, 4), (0, 2), (1, 1))]),
    "a square kernel at two strides": StackPlan((12, 12), [LayerPlan((4, 4), (4, 2), (0, 1), (1, 1))]),
    "padding of whole windows": StackPlan((7, 7), [replace(THREE, padding=(4, 3))] * 2),
    "strided padding of whole windows": StackPlan((8, 8), [LayerPlan((4, 4), (4, 4), (5, 5), (1, 1))]),
    "dilated": StackPlan((13, 13), [LayerPlan((3, 3), stride, (2, 2), (2, 2)) for stride in ((1, 1), (2, 2))]),
    "depthwise": StackPlan((9, 9), [replace(THREE, groups=0)] * 2),
    "depthwise at a stride": StackPlan((9, 9), [replace(THREE, stride=(2, 2), groups=0)] * 2),
    "groups": StackPlan((9, 9), [THREE, replace(THREE, groups=2)]),
    "transposed": StackPlan((6, 7), [LayerPlan((3, 2), (2, 1), (1, 0), (1, 1), transposed=True)] * 2),
    "transposed in groups": StackPlan((6, 6), [ONE, LayerPlan((4, 4), (2, 2), (1, 1), (1, 1), 2, transposed=True)]),
    "rows": StackPlan((17,), [LayerPlan((5,), (1,), (2,), (1,)), LayerPlan((3,), (3,), (0,), (1,), norm=True)]),
    "rows of one place": StackPlan((17,), [LayerPlan((1,), (4,), (0,), (1,))] * 2),
    "volumes": StackPlan((5, 6, 7), [
        LayerPlan((3, 2, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1)), LayerPlan((1, 1, 1), (2, 3, 1), (0, 0, 0), (1, 1, 1))
    ]),
    "strided volumes": StackPlan((8, 8, 8), [LayerPlan((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))]),
    "no bias": StackPlan((9, 9), [replace(THREE, bias=False, norm=True, activation="none")] * 2),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["conserving", pytest.param("epsilon_plus_flat", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STACKS)
def test_every_form_of_convolution_is_explained_alike(name, preset):
    model, x = stack(replace(STACKS[name], zeros=True))
    assert len(model.layers)
    assert_changes_nothing(model, x, optimize=("transposes_as_convolutions",), preset=preset)


@settings(max_examples=12)
@given(stack_plans(), st.sampled_from(sorted(CHOICES)), st.sampled_from(["conserving", "epsilon_plus", "otsuki2024"]))
def test_random_convolutions_are_explained_alike(plan, choice, preset):
    model, x = stack(plan)
    assert_changes_nothing(model, x, optimize=CHOICES[choice], preset=preset, limit=limit_of(preset))


ORDERS = st.sampled_from([*CHOICES.values(), *((a, b) for a in NAMES for b in NAMES if a < b)])
EVERY_PRESET = sorted(set(fxlrp.PRESETS) - {"epsilon_gamma_box", "otsuki2024_mixture"})


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(stack_plans(), ORDERS, st.sampled_from(EVERY_PRESET), st.integers(0, 5))
def test_random_convolutions_are_explained_alike_at_length(plan, optimize, preset, seed):
    model, x = stack(plan, seed=seed)
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(image_net_plans(), ORDERS, st.sampled_from(EVERY_PRESET), st.booleans(), st.integers(0, 5))
def test_random_residual_graphs_are_explained_alike_at_length(plan, optimize, preset, zeros, seed):
    assert_a_random_net_is_explained_alike(plan, optimize, preset, zeros, seed)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(token_net_plans(), ORDERS, st.sampled_from(["conserving", "attnlrp", "cp_lrp"]), st.integers(0, 5))
def test_random_networks_of_tokens_are_explained_alike_at_length(plan, optimize, preset, seed):
    torch.manual_seed(seed)
    model, x = RandomTokens(plan).double().eval(), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE)
    assert_changes_nothing(model, x, optimize=optimize, preset=preset, limit=limit_of(preset))


@pytest.mark.slow
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_networks_of_real_size_are_explained_alike(name, form):
    import torchvision

    model, x = seeded_weights(torchvision.models.get_model(name)), torch.randn(2, 3, 64, 64).to(memory_format=form)
    plain = explained(model, x, optimize=False)
    explainer = fxlrp.compile(model)
    for _ in range(3):
        explanation = explainer(x)
        assert torch.equal(explanation.output, model(x))
        assert_same(explanation, plain)


def centred(output, target):
    return output - output.mean(1, keepdim=True)


@pytest.mark.parametrize("optimize", [NAMES, ("known_sums", "reuse_memory")], ids=len)
@pytest.mark.parametrize("start", ["logit", "one", centred])
def test_starts_of_either_sign_and_checkpoints(start, optimize):
    model, x = tour()
    assert_changes_nothing(model, x, optimize=optimize, start=start, checkpoints=("down", "stem", "head"))


@pytest.mark.parametrize("split", ["symmetric", "signed", "residual"])
def test_every_split(split):
    model, x = tour()
    assert_changes_nothing(model, x, optimize=NAMES, split=split, identity_skips=split != "symmetric")


@pytest.mark.parametrize(
    ("bias", "vanishing"), [("ignore", "spread"), ("absorb", "rescale"), ("share", "rescale"), ("share", "absorb")]
)
def test_every_way_with_bias_and_vanishing_denominators(bias, vanishing):
    model, x = tour()
    rules = {pattern: ZPlus(bias=bias, vanishing=vanishing) for pattern in ("twice", "down", "grouped", "up", "head")}
    rules["stem"] = fxlrp.rules.WPlus(bias=bias, vanishing=vanishing)
    assert_changes_nothing(model, x, optimize=NAMES, rules=rules)


@settings(max_examples=2)
@given(net_plans(), st.sampled_from(sorted(CHOICES)))
def test_rows_and_conditions_are_explained_alike(plan, choice):
    torch.manual_seed(0)
    model, x = RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    plain, optimized = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=CHOICES[choice])
    targets = torch.tensor([[0, 1, 2], [2, 2, 4]])
    conditions = [{"stem": [0]}, {"stem": [1, 3]}, {"stem": []}]
    for options in ({"target": targets}, {"conditions": conditions}, {"target": [0, 1, 2], "conditions": conditions}):
        assert_same(optimized(x, **options), plain(x, **options))
    assert_same(optimized(x, conditions=conditions[0]), plain(x, conditions=conditions[0]))
    assert_same(optimized(x), plain(x))  # a single one after many


@pytest.mark.parametrize("choice", ["all", "sum_channels alone", "all but known_sums", "all but fold_weights"])
def test_heatmaps(choice):
    model, x = tour()
    plain, optimized = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=CHOICES[choice])
    relevance = plain(x).relevance
    assert_close(plain.heatmap(x), relevance.sum(1), 1e-12)
    for _ in range(2):
        assert_close(optimized.heatmap(x), relevance.sum(1), 1e-12)
    assert_close(optimized(x).relevance, relevance, 1e-12)  # whose channels stay apart


@pytest.mark.parametrize("name", STACKS)
def test_heatmaps_of_every_form_of_first_layer(name):
    model, x = stack(replace(STACKS[name], layers=STACKS[name].layers[:1], zeros=True))
    relevance = explained(model, x, optimize=False).relevance
    assert_close(fxlrp.compile(model, optimize=NAMES).heatmap(x), relevance.sum(1), 1e-12)


@pytest.mark.parametrize(("preset", "dtype"), [
    ("conserving", torch.bfloat16), ("conserving", torch.float16), ("epsilon_plus", torch.float16),
    ("attnlrp", torch.bfloat16),
])  # fmt: skip
def test_models_of_half_precision(preset, dtype):
    model, x = (attention if preset == "attnlrp" else tour)(torch.float32)
    model, x = model.to(dtype), x.to(dtype)
    # Relevance is computed in single precision, of which ε rules keep less.
    limit = 1e-5 if preset == "conserving" else 1e-4
    explainer = assert_changes_nothing(model, x, optimize=True, preset=preset, start="logit", limit=limit)
    assert torch.equal(explainer(x).output, model(x))
    ledger = explainer.ledger(x)
    largest = torch.stack([row.received.abs() for row in ledger]).amax(0)
    for row in ledger:
        assert (row.error.abs() <= 1e-5 * largest).all(), f"{row.node} loses {row.error / largest}"


def test_autocast_and_full_precision_in_turn():
    model, x = tour(torch.float32)
    plain, optimized = fxlrp.compile(model, optimize=False), fxlrp.compile(model)
    for _ in range(2):
        assert_same(optimized(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(optimized(x), plain(x))


@pytest.mark.slow
def test_recurrent_networks():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(F.relu(self.lstm(x)[0]).mean(1))

    assert_changes_nothing(Recurrent().double().eval(), torch.randn(2, 3, 4, dtype=DOUBLE), optimize=NAMES)


def test_graphs_of_export():
    model, x = tour()
    explainer = fxlrp.compile(_Checked(model).eval(), "epsilon_plus", example_inputs=x)
    assert explainer.capture == "export"
    for _ in range(2):
        assert_same(explainer(x), explained(model, x, optimize=False, preset="epsilon_plus"))


class _Checked(nn.Module):
    """A model behind a check that symbolic tracing cannot follow."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("channels")
        return self.model(x)


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.images, self.rows = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, image, row):
            return self.head(F.relu(self.images(image)).mean((2, 3)) + F.relu(self.rows(row)))

    model = Two().double().eval()
    images = [torch.randn(batch, 3, 6, size, dtype=DOUBLE) for batch, size in ((2, 6), (3, 8), (2, 6))]
    explainer = fxlrp.compile(model)
    for image in images:
        row = torch.randn(len(image), 5, dtype=DOUBLE)
        assert_same(explainer(image, row), explained(model, image, row, optimize=False))


# The output of the model ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("choice", ["the default", "reuse_memory alone", "pack_weights alone", "share_steps alone"])
def test_the_output_of_the_model_stays_to_the_bit(choice, form):
    model, x = tour(torch.float32)
    model, x = model.to(memory_format=form), x.to(memory_format=form)
    explainer = fxlrp.compile(model, optimize=CHOICES[choice])
    for image in (x, x, x.contiguous()):
        assert torch.equal(explainer(image).output, model(image))


@settings(max_examples=3)
@given(net_plans(), st.booleans())
def test_the_output_of_random_graphs_stays_to_the_bit(plan, channels_last):
    torch.manual_seed(0)
    model, x = RandomNet(plan).eval(), torch.randn(2, 3, 12, 12)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    explainer = fxlrp.compile(model)
    for _ in range(2):
        assert torch.equal(explainer(x).output, model(x))


@settings(max_examples=6)
@given(stack_plans())
def test_folded_norms_change_the_output_by_rounding_alone(plan):
    plan = replace(plan, layers=[replace(layer, norm=True) for layer in plan.layers])
    for dtype in (DOUBLE, torch.float32):
        model, x = stack(plan, dtype)
        assert_close(explained(model, x, optimize=(FOLD_NORMS,)).output, model(x).detach(), tolerance(dtype))


# Gradients and ledgers ------------------------------------------------------------------------------


def gradients(model, x, optimize, preset="conserving", **options):
    """Relevance, and the gradients of its weighted sum by the input and by every parameter."""
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=optimize, differentiable=True, **options)
    x = x.clone().requires_grad_()
    relevance = explainer(x, target=torch.zeros(len(x), dtype=torch.long)).relevance
    assert relevance.grad_fn is not None
    weights = torch.linspace(0.5, 1.5, relevance.numel(), dtype=relevance.dtype).reshape(relevance.shape)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = (weights * relevance).sum()
    return relevance.detach(), torch.autograd.grad(whole, [x, *parameters], materialize_grads=True)


def assert_same_gradients(model, x, optimize=True, **options):
    relevance, expected = gradients(model, x, False, **options)
    got, found = gradients(model, x, optimize, **options)
    assert_close(got, relevance, 1e-12)
    largest = max(gradient.abs().max() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * largest


@pytest.mark.parametrize("preset", [
    "conserving", "epsilon_plus", "attnlrp",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("otsuki2024", "epsilon_gamma_box")),
])  # fmt: skip
def test_gradients_are_the_same(preset):
    if preset == "attnlrp":
        model, x = attention()
    else:
        model, x = tour()
        x[1] += 1  # an ε rule is as steep as 1/ε where nothing is there
    assert_same_gradients(model, x, NAMES, preset=preset)


@pytest.mark.parametrize("trained", ["head", "stem", "twice"])
def test_gradients_of_a_part_of_the_weights(trained):
    model, x = tour()
    model.requires_grad_(False)
    model.get_submodule(trained).requires_grad_(True)
    assert_same_gradients(model, x[:1])


class TwoActivations(nn.Module):
    """``first`` and ``second`` of one value, added; or ``second`` of ``first``."""

    def __init__(self, first, second, nested):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.first, self.second, self.nested = first, second, nested

    def forward(self, x):
        x = self.stem(x)
        x = self.second(self.first(x)) if self.nested else self.first(x) + self.second(x)
        return self.head(x.mean((2, 3)))


ACTIVATIONS = {
    "relu of what silu reads": (F.silu, F.relu, False),
    "relu of what gelu reads": (F.gelu, F.relu, False),
    "sigmoid of a tanh": (torch.tanh, torch.sigmoid, True),
    "sigmoid of a relu": (F.relu, torch.sigmoid, True),
    "tanh of a sigmoid": (torch.sigmoid, torch.tanh, True),
    "a rising slope": (lambda x: F.leaky_relu(x, -0.1), F.relu, True),
    "relu twice": (F.relu, F.relu, True),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_through_values_that_autograd_keeps(name):
    # What one step saved for its derivative another one must not write into.
    model = TwoActivations(*ACTIVATIONS[name]).double().eval()
    assert_same_gradients(model, torch.randn(2, 3, 8, 8, dtype=DOUBLE), start="logit")


def test_gradients_where_only_a_reader_is_trained():
    # Autograd keeps what the norm reads, for the norm's scale; nothing before it is trained.
    model = TwoActivations(nn.BatchNorm2d(4), nn.ReLU(), nested=False).double().eval()
    model.stem.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    found = []
    for optimize in (False, True):
        explainer = fxlrp.compile(model, optimize=optimize, differentiable=True, start="logit")
        whole = explainer(x, target=0).relevance.square().sum()
        found.append(torch.autograd.grad(whole, [model.first.weight, model.head.weight]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 1e-9)


@settings(max_examples=3)
@given(net_plans())
def test_gradients_of_random_graphs_are_the_same(plan):
    torch.manual_seed(0)
    assert_same_gradients(RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE), start="logit")


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(net_plans(), st.sampled_from(sorted(CHOICES)), st.integers(0, 5))
def test_gradients_of_random_graphs_are_the_same_at_length(plan, choice, seed):
    torch.manual_seed(seed)
    model, x = RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    assert_same_gradients(model, x, CHOICES[choice], start="logit")


def test_without_differentiable_nothing_is_recorded():
    model, x = tour()
    assert not explained(model, x.requires_grad_(), optimize=NAMES).relevance.requires_grad


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "attnlrp"])
def test_the_ledger_is_the_same(preset):
    model, x = attention() if preset == "attnlrp" else tour()
    plain = fxlrp.compile(model, chosen_preset(preset), optimize=False).ledger(x)
    ledger = fxlrp.compile(model, chosen_preset(preset), optimize=NAMES).ledger(x)
    scale = plain.start.abs() + torch.stack([row.received.abs() for row in plain]).amax(0)
    for row, expected in zip(ledger, plain, strict=True):
        assert (row.node, row.path, row.kind, row.rule) == (expected.node, expected.path, expected.kind, expected.rule)
        assert row.by_reason.keys() == expected.by_reason.keys()
        pairs = [(row.received, expected.received), (row.handed_on, expected.handed_on)]
        pairs += [(row.by_reason[reason], expected.by_reason[reason]) for reason in row.by_reason]
        for amount, known in pairs:
            assert ((amount - known).abs() <= 1e-12 * scale).all(), row.node
    assert ((ledger.relevance - plain.relevance).abs() <= 1e-12 * scale).all()


def test_what_is_optimised_conserves():
    model, x = tour()
    assert_conserves(fxlrp.compile(model, optimize=NAMES), x)


# Each pass does what it says ------------------------------------------------------------------------


def written(explainer, *targets, layer=None):
    """The steps of rules that call one of ``targets``, of ``layer`` alone where it is given."""
    graphs = [explainer.graph]
    if hasattr(explainer.graph_module, "derived"):
        graphs.append(explainer.graph_module.derived.program.graph)
    found = [node for graph in graphs for node in graph.nodes if node.target in targets]
    known = [(node, node.meta.get(KEY)) for node in found]
    return [node for node, of in known if isinstance(of, Emitted) and layer in (None, of.node)]


class _Values(fx.Interpreter):
    """Runs a program and keeps the value of every node."""

    def __init__(self, module):
        super().__init__(module, garbage_collect_values=False)


def values_of(explainer, *inputs):
    """The value of every node of a program."""
    run = _Values(explainer.graph_module)
    with torch.no_grad():
        run.run(*inputs, None)
    return run.env


def test_a_known_sign_saves_a_branch():
    model, _ = signed()
    plain, single = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=("single_branch",))
    assert len(written(plain, F.conv2d, layer="known")) == 2  # x⁺w⁺ and x⁻w⁻
    assert len(written(single, F.conv2d, layer="known")) == 1
    assert len(written(single, convolutions.convolution_transpose, layer="known")) == 1
    assert len(written(single, F.conv2d, layer="signed")) == 2  # which reads either sign


def test_a_rule_that_takes_the_layer_as_it_is_reads_what_the_layer_gave():
    model, x = signed()
    preset = fxlrp.Preset("ε", linear=Epsilon(1e-3, bias="absorb"), batch_norm=fxlrp.rules.Fold())
    plain = fxlrp.compile(model, preset, optimize=False)
    reused = fxlrp.compile(model, preset, optimize=("reuse_forward",))
    assert len(written(plain, F.conv2d)) == 3
    assert len(written(plain, F.linear)) == 1
    assert not written(reused, F.conv2d, F.linear)
    assert_same(reused(x), plain(x))


@pytest.mark.parametrize("bias", ["ignore", "absorb"])
def test_what_the_layer_gave_is_no_denominator_without_its_bias(bias):
    model, x = signed()
    explainer = assert_changes_nothing(
        model, x, optimize=("reuse_forward",), preset=fxlrp.Preset("ε", linear=Epsilon(1e-3, bias=bias))
    )
    recomputed = {"signed", "known", "head"} if bias == "ignore" else set()
    found = {node.meta[KEY].node for node in written(explainer, F.conv2d, F.linear)}
    assert found - {"stem"} == recomputed


def test_what_is_padded_with_other_values_is_no_operand_of_what_the_layer_gave():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = F.pad(F.relu(self.stem(x)), (1, 1, 1, 1)) + 1
            return self.head(self.conv(x).mean((2, 3)))

    model = Padded().double().eval()
    preset = fxlrp.Preset("ε", linear=Epsilon(1e-3, bias="absorb"))
    assert_changes_nothing(model, torch.randn(2, 3, 8, 8, dtype=DOUBLE), optimize=("reuse_forward",), preset=preset)


@pytest.mark.parametrize("network", [tour, signed])
def test_the_denominators_of_a_first_layer_are_those_of_one_item(network):
    model, x = network()
    plain, constant = (fxlrp.compile(model, optimize=o) for o in (False, ("constant_denominators",)))
    for explainer, batch in ((plain, 3), (constant, 1)):
        (quotient,) = written(explainer, primitives.divide, layer="stem")
        values = values_of(explainer, x)
        assert values[quotient].shape[0] == 3
        assert values[quotient.args[1]].shape[0] == batch
    assert not written(constant, torch.ones_like)
    assert len(written(constant, torch.mul, layer="stem")) == 0  # relevance times ones is relevance


def test_what_says_where_signal_is_is_that_of_one_item():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(F.pad(x, (2, 0, 1, 3)))).mean((2, 3)))

    model, x = Padded().double().eval(), torch.randn(3, 3, 6, 6, dtype=DOUBLE)
    explainer = assert_changes_nothing(model, x, optimize=("constant_denominators",))
    (quotient,) = written(explainer, primitives.divide, layer="stem")
    assert values_of(explainer, x)[quotient.args[1]].shape[0] == 1
    with torch.no_grad():
        model.stem.weight.copy_(-model.stem.weight.abs())  # no share at all: evenly over what carries signal
    assert_changes_nothing(model, x, optimize=True)
    assert_changes_nothing(model, x, optimize=NAMES)


class PaddedRows(nn.Module):
    """Rows (batch, length, features) padded along their length, whose batch a layer does not find in front."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer, self.head = way, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.pad(x, (0, 0, 1, 1))
        n = x.shape[1]
        if self.way == "sequence first":
            return self.head(F.relu(self.layer(x.transpose(0, 1))).mean(0))
        if self.way == "flattened":
            return self.head(F.relu(self.layer(x.flatten(0, 1))).unflatten(0, (-1, n)).mean(1))
        return self.head(F.relu(self.layer(x.reshape(-1, 3))).reshape(-1, n, 4).mean(1))


@pytest.mark.parametrize("optimize", [("constant_denominators",), DEFAULT], ids=["alone", "the default"])
@pytest.mark.parametrize("way", ["sequence first", "folded", "flattened"])
def test_ones_for_one_item_stand_for_all_where_the_batch_is_in_front_alone(way, optimize):
    model, x = PaddedRows(way).double().eval(), torch.randn(3, 6, 3, dtype=DOUBLE)
    assert_changes_nothing(model, x, optimize=optimize)
    with torch.no_grad():
        model.layer.weight.copy_(-model.layer.weight.abs())  # no share at all
    assert_changes_nothing(model, x, optimize=optimize)


def test_a_step_that_two_rules_take_is_taken_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(F.relu(self.conv(F.relu(self.stem(x)))))
            return self.head(x.mean((2, 3)))

    model, x = Shared().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    plain, shared = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=("share_steps",))

    def parts_of_conv(explainer):
        weights = {node for node in explainer.graph.nodes if node.target == "conv.weight"}
        parts = written(explainer, primitives.positive, primitives.negative)
        return sorted(node.target.__name__ for node in parts if node.args[0] in weights)

    assert parts_of_conv(plain) == ["negative", "negative", "positive", "positive"]
    assert parts_of_conv(shared) == ["negative", "positive"]
    assert_same(shared(x), plain(x))


def test_steps_that_differ_stay_apart():
    # Equal numbers of different types: 1 + x is not True + x where x counts.
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta[KEY] = Emitted("", "", "step")
    new = []
    for second in (1, 1.0, True, 1, [1, 2], (1, 2), [1, 2], slice(1), slice(1)):
        node = graph.call_function(getitem, (x, second))
        node.meta[KEY] = Emitted("", "", "step")
        new.append(node)
    graph.output(new)
    from fxlrp.passes.optimize.shared import ShareSteps

    module = ShareSteps()(fx.GraphModule(nn.Module(), graph))
    (result,) = next(node for node in module.graph.nodes if node.op == "output").args
    places = [new.index(node) for node in result]
    assert places == [0, 1, 2, 0, 4, 5, 4, 7, 7]


@pytest.mark.parametrize("network", [tour, attention])
@pytest.mark.parametrize("start", ["probability", "one"])
def test_what_is_rescaled_is_summed_once(network, start):
    model, x = network()
    plain = fxlrp.compile(model, optimize=("single_branch",), start=start)
    known = fxlrp.compile(model, optimize=("single_branch", "known_sums"), start=start)
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


def test_relevance_of_either_sign_is_rescaled_as_it_was():
    model, _ = tour()
    plain, known = (fxlrp.compile(model, optimize=o, start="logit") for o in (False, ("known_sums",)))
    assert len(written(known, batch_axis.rescale)) == len(written(plain, batch_axis.rescale)) > 3
    assert not written(known, batch_axis.rescale_to)


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus_flat"])
def test_a_heatmap_sums_the_weights_of_the_first_layer(preset):
    model, x = signed()
    found = {}
    for optimize in (False, True):
        explainer = fxlrp.compile(model, preset, optimize=optimize)
        explainer.heatmap(x)
        found[optimize] = calls(explainer.heatmap, x).of("sum", shapes={x.shape})
    assert len(found[False]) >= 1  # relevance itself
    assert not found[True]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_weights_are_summed_over_the_channels_of_the_input(dims):
    from fxlrp.passes.optimize.channel_sums import sum_inputs

    model, x = stack(StackPlan((8,) * dims, [LayerPlan((3,) * dims, (1,) * dims, (1,) * dims, (1,) * dims)]))
    weight = model.layers[0].weight.detach()
    s = F.relu(model.layers[0](x)).detach()
    convolution, transpose = transposes._CONVOLUTION[dims], convolutions._TRANSPOSED_CONVOLUTION[dims]
    assert sum_inputs(weight).shape == (len(weight), 1, *weight.shape[2:])
    summed = transpose(s, weight, None, 1, 1).sum(1, keepdim=True)
    assert_close(transpose(s, sum_inputs(weight), None, 1, 1), summed, 1e-13)
    same = convolution(x[:, :1].expand_as(x), weight, None, 1, 1)
    assert_close(convolution(x[:, :1], sum_inputs(weight), None, 1, 1), same, 1e-13)
    relevance = explained(model, x, optimize=False).relevance
    assert_close(fxlrp.compile(model).heatmap(x), relevance.sum(1), 1e-12)


def test_a_convolution_with_stride_one_has_no_transpose_left():
    model, x = signed()
    plain, turned = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=("transposes_as_convolutions",))
    assert len(written(plain, convolutions.convolution_transpose)) == 5
    assert not written(turned, convolutions.convolution_transpose)
    seen = calls(turned, x)
    assert not seen.of("convolution_backward", "conv_transpose2d")
    assert_same(turned(x), plain(x))


KEPT = {"neither square", "a square kernel at two strides", "depthwise at a stride", "strided volumes"}
TURNED = {
    "kernels of one place at a stride", "a patch embedding", "patches with a rest", "a stride beyond the kernel",
    "a stem", "strided padding of whole windows", "depthwise", "groups", "rows of one place", "volumes",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(KEPT | TURNED))
def test_which_transposes_are_turned_into_convolutions(name):
    model, _ = stack(STACKS[name])
    explainer = fxlrp.compile(model, optimize=("transposes_as_convolutions",))
    assert bool(written(explainer, convolutions.convolution_transpose)) == (name in KEPT)


def test_a_norm_behind_a_convolution_is_no_step_of_its_own():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.first, self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = F.relu(self.first(self.a(x)))
            read = self.b(x)  # once more, beside the norm
            return self.head((self.third(F.relu(self.second(read))) + read).mean((2, 3)))

    model, x = seeded_weights(Norms()).double(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    state = copy.deepcopy(model.state_dict())
    explainer = assert_changes_nothing(model, x, optimize=(FOLD_NORMS,))
    left = [node.name for node in explainer.graph.nodes if node.target is aten.batch_norm.default]
    assert left == ["second", "third"]
    assert_close(explainer(x).output, model(x).detach(), 1e-12)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_norm_without_scale_is_folded_too():
    layers = [LayerPlan((3, 3), (1, 1), (1, 1), (1, 1), bias=bias, norm=True) for bias in (True, False)]
    model, x = stack(StackPlan((8, 8), layers))
    norms = [i for i, layer in enumerate(model.layers) if isinstance(layer, nn.BatchNorm2d)]
    for i in norms:
        model.layers[i] = seeded_weights(nn.BatchNorm2d(model.layers[i].num_features, affine=False)).double()
    explainer = assert_changes_nothing(model, x, optimize=(FOLD_NORMS,))
    assert not [node for node in explainer.graph.nodes if node.target is aten.batch_norm.default]
    assert_close(explainer(x).output, model(x).detach(), 1e-12)


def test_names_of_nodes_stay():
    # A picture, the code and what was noted of a node find it by its name.
    model, _ = tour()
    plain, optimized = fxlrp.compile(model, optimize=("single_branch", "reuse_forward")), fxlrp.compile(model)
    relevance = {node.name for node in plain.graph.nodes if node.name.startswith("relevance_")}
    assert relevance <= {node.name for node in optimized.graph.nodes}
    forward = [node.name for node in plain.graph.nodes if not isinstance(node.meta.get(KEY), Emitted)]
    assert [node.name for node in optimized.graph.nodes if node.name in forward] == forward


def test_passes_only_change_what_they_are_for():
    # A network that gives a pass nothing to do has the same graph after it.
    model = Tokens(Block(Attention()), Block(Fused())).double().eval()
    plain = fxlrp.compile(model, "cp_lrp", start="logit", optimize=False)
    for name in ("known_sums", "sum_channels", "transposes_as_convolutions", FOLD_NORMS, "pack_weights"):
        assert steps(fxlrp.compile(model, "cp_lrp", start="logit", optimize=(name,)).graph) == steps(plain.graph)


# Rules of one's own ---------------------------------------------------------------------------------


@primitive
def relative(weight):
    """Weights beside the largest: a step that looks at numbers when it runs."""
    largest = float(weight.abs().max())
    return weight / largest if largest else weight


class Relative(LinearRule):
    def parts(self, layer):
        return [Part(layer.term(layer.x, relative))]


@pytest.mark.parametrize("choice", ["transposes_as_convolutions alone", "fold_weights alone", "the default"])
def test_a_step_may_look_at_the_weights_when_it_runs(choice):
    model, x = signed()
    assert_changes_nothing(model, x, optimize=CHOICES[choice], rules={"known": Relative(stabilizer=1e-6)})


class OnlyPositiveInputs(LinearRule):
    keeps_sign = False

    def parts(self, layer):
        return [Part(layer.term(primitives.positive(layer.x), primitives.positive), layer.bias)]


@pytest.mark.parametrize("choice", [*ALONE, "all"])
def test_a_rule_of_ones_own_is_left_as_it_is(choice):
    model, x = signed()
    rule = OnlyPositiveInputs(vanishing="rescale", bias="share")
    assert_changes_nothing(model, x, optimize=CHOICES[choice], rules={"signed": rule, "head": rule})


# Transposes as convolutions, by themselves ----------------------------------------------------------


def transposed(s, weight, x, stride, padding, dilation=1, groups=1):
    """torch's own transpose, in the shape of ``x``."""
    dims = weight.dim() - 2
    stride, padding, dilation = (([v] * dims if isinstance(v, int) else list(v)) for v in (stride, padding, dilation))
    made = [
        (n - 1) * st - 2 * p + d * (k - 1) + 1
        for n, st, p, d, k in zip(s.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    rest = [n - m for n, m in zip(x.shape[2:], made, strict=True)]
    return convolutions._TRANSPOSED_CONVOLUTION[dims](s, weight, None, stride, padding, rest, groups, dilation)


def normal(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


FLIPPED = [
    ((3, 3), (1, 1), (1, 1), 1), ((1, 5), (0, 2), (1, 1), 1), ((4, 2), (0, 1), (1, 1), 2), ((7, 1), (6, 0), (1, 1), 3),
    ((3, 2), (4, 1), (2, 3), 1), ((2, 4), (0, 3), (3, 1), 6), ((5,), (4,), (1,), 1), ((3,), (1,), (2,), 2),
    ((1, 2, 3), (0, 1, 2), (1, 1, 1), 1), ((2, 2, 2), (0, 1, 2), (2, 1, 2), 3),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "padding", "dilation", "groups"), FLIPPED)
def test_a_transpose_is_a_convolution_with_the_weights_turned_round(kernel, padding, dilation, groups):
    x, weight = normal(2, 6, *(9, 10, 8)[: len(kernel)]), normal(12, 6 // groups, *kernel)
    convolution = transposes._CONVOLUTION[len(kernel)]
    s = normal(*convolution(x, weight, None, 1, padding, dilation, groups).shape)
    turned = transposes.flipped(weight, groups)
    assert turned.shape == (6, 12 // groups, *kernel)
    around = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    got = convolution(s, turned, None, 1, around, dilation, groups)
    assert_close(got, transposed(s, weight, x, 1, padding, dilation, groups), 1e-13)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7])
def test_a_strided_transpose_is_a_shuffle_of_its_phases(kernel, stride):
    weight, taps = normal(5, 3, kernel, kernel), -(-kernel // stride)
    assert transposes.phases(weight, stride).shape == (3 * stride**2, 5, taps, taps)
    for padding in range(kernel + 2):
        for height, width in ((7, 7), (8, 9), (10, 11), (13, 12)):
            x = normal(2, 3, height, width)
            if min(height, width) + 2 * padding < kernel:
                continue
            s = normal(*F.conv2d(x, weight, None, stride, padding).shape)
            parts = F.conv2d(s, transposes.phases(weight, stride), None, 1, taps - 1)
            got = transposes.interleaved(parts, x, stride, padding)
            assert got.shape == x.shape
            expected = transposed(s, weight, x, stride, padding)
            assert (got - expected).abs().max() <= 1e-13 * weight.abs().sum()


@pytest.mark.parametrize("stride", [(2,), (5,), (2, 3), (1, 4), (3, 1), (2, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_of_one_place_puts_values_at_the_multiples_of_its_stride(stride, groups):
    dims = len(stride)
    weight, convolution = normal(6, 4 // groups, *[1] * dims), transposes._CONVOLUTION[dims]
    for size in ((7, 8, 5), (9, 10, 6), (6, 12, 7)):
        x = normal(2, 4, *size[:dims])
        s = normal(*convolution(x, weight, None, stride, 0, 1, groups).shape)
        parts = convolution(s, transposes.flipped(weight, groups), None, 1, 0, 1, groups)
        got = transposes.spaced(parts, x, list(stride))
        assert_close(got, transposed(s, weight, x, stride, 0, 1, groups), 1e-13)


def test_values_are_put_at_the_multiples_for_many_rows_alike():
    x, parts = normal(2, 3, 7, 8), normal(4, 2, 3, 4, 3)
    many = torch.vmap(lambda p: transposes.spaced(p, x, [2, 3]))(parts)
    for row, part in zip(many, parts, strict=True):
        assert torch.equal(row, transposes.spaced(part, x, [2, 3]))


def test_what_is_put_at_the_multiples_is_laid_out_as_the_operand():
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert transposes.spaced(torch.randn(2, 3, 4, 4), x, [2, 2]).is_contiguous(memory_format=torch.channels_last)
    whole = transposes.spaced(torch.randn(2, 3, 4, 4), x.double(), [2, 2])  # relevance may be of another precision
    assert whole.dtype == torch.float32


def test_transposes_may_be_differentiated():
    weight, s, x = normal(4, 3, 3, 3).requires_grad_(), normal(2, 4, 4, 4).requires_grad_(), normal(2, 3, 8, 8)

    def by_phases(s, weight):
        return transposes.interleaved(F.conv2d(s, transposes.phases(weight, 2), None, 1, 1), x, 2, 1)

    def by_turning(s, weight):
        return F.conv2d(s, transposes.flipped(weight, 1), None, 1, 1)

    def by_spacing(s, weight):
        return transposes.spaced(F.conv2d(s, transposes.flipped(weight[:, :, :1, :1], 1)), x, [2, 2])

    for function in (by_phases, by_turning, by_spacing):
        assert torch.autograd.gradcheck(function, (s, weight), fast_mode=True)


# The tests can fail ---------------------------------------------------------------------------------


def test_wrong_phases_go_red(monkeypatch):
    test_every_form_of_convolution_is_explained_alike("a stem", "conserving")
    right = transposes.phases
    monkeypatch.setattr(transposes, "phases", primitive(lambda weight, stride: right(weight.flip(2), stride)))
    with pytest.raises(AssertionError):
        test_every_form_of_convolution_is_explained_alike("a stem", "conserving")


def test_a_wrong_sum_goes_red(monkeypatch):
    from fxlrp.passes.optimize import sums

    right = batch_axis.sum_items
    wrong = primitive(lambda relevance, batch_axis=None: 1.01 * right(relevance, batch_axis))
    monkeypatch.setattr(sums, "sum_items", wrong)
    model, x = tour()
    with pytest.raises(AssertionError):
        assert_changes_nothing(model, x, optimize=("known_sums",))


def test_a_shared_step_that_is_another_one_goes_red(monkeypatch):
    from fxlrp.passes.optimize import shared

    monkeypatch.setattr(shared, "_key", lambda value: len(value))  # as if calls with as many arguments were alike
    torch.manual_seed(0)
    model, x = RandomNet(NetPlan([BlockPlan(), *SMALL.blocks])).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_changes_nothing(model, x, optimize=("share_steps",))
