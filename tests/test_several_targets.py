"""Many classes in one call: what as many calls give, from one forward pass."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from nets import EVERY_SKIP, RandomNet, images_with_an_empty_one
from strategies import net_plans, token_net_plans
from test_recurrent import Recurrent
from token_nets import WIDTH, RandomTokens
from torch import nn

import fxlrp
from fxlrp.errors import InputError, RuleError, StartError, TargetError

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("no_vmap_loops")


@pytest.fixture
def model():
    return RandomNet(EVERY_SKIP).double().eval()


@pytest.fixture
def x():
    return images_with_an_empty_one()


def assert_equals_single_calls(explainer, *inputs, targets=(0, 2, 1), limit=1e-12, **named):
    """A list of classes gives what one call per class gives."""
    together = explainer(*inputs, target=list(targets), **named)
    calls = [explainer(*inputs, target=target, **named) for target in targets]
    for name, relevance in together.by_input.items():
        for k, call in enumerate(calls):
            expected = call.by_input[name]
            if expected.any():
                assert_close(relevance[:, k], expected, limit)
            assert relevance.shape == (len(expected), len(targets), *expected.shape[1:])
    assert_close(together.start, torch.stack([call.start for call in calls], dim=1), limit)
    assert torch.equal(together.target, torch.stack([call.target for call in calls], dim=1))
    return together


# Every kind of network ------------------------------------------------------------------------------


@examples(fast=12, slow=100)
@given(net_plans(), st.sampled_from(["ratio", "symmetric", "signed"]))
def test_random_residual_networks_are_explained_as_by_single_calls(plan, split):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    x[1] = 0
    assert_equals_single_calls(fxlrp.compile(RandomNet(plan).double().eval(), "conserving", split=split), x)


@examples(fast=8, slow=100)
@given(token_net_plans(), st.sampled_from(["conserving", "attnlrp", "cp_lrp"]))
def test_random_networks_of_tokens_are_explained_as_by_single_calls(plan, preset):
    torch.manual_seed(0)
    model, x = RandomTokens(plan).double().eval(), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE)
    # Without stabilisers of any size the ε rules of these presets amplify what rounding does.
    assert_equals_single_calls(fxlrp.compile(model, preset), x, limit=1e-12 if preset == "conserving" else 1e-8)


@pytest.mark.parametrize("preset", fxlrp.PRESETS)
def test_every_preset_explains_as_by_single_calls(preset):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    )
    assert_equals_single_calls(fxlrp.compile(model.double().eval(), preset), torch.randn(2, 3, 8, 8, dtype=DOUBLE))


@pytest.mark.parametrize("final_states", [False, True])
def test_an_lstm_is_explained_as_by_single_calls(final_states):
    model = Recurrent(final_states, bidirectional=True, num_layers=2).double().eval()
    explainer = fxlrp.compile(model, "conserving")
    assert_equals_single_calls(explainer, torch.randn(3, 6, 4, dtype=DOUBLE))


def test_an_exported_transformer_is_explained_as_by_single_calls():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=60, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    explainer = fxlrp.compile(model, "conserving")
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    explanation = assert_equals_single_calls(explainer, input_ids=torch.randint(3, 60, (2, 7)), attention_mask=mask)
    assert explainer.capture == "export"
    tokens = fxlrp.token_relevance(explanation.by_input["input_ids"])
    assert tokens.shape == (2, 3, 7)
    assert not tokens[1, :, 5:].any()


def test_an_input_without_relevance_has_zeros_for_every_target():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left, right, gate):
            return (self.a(left) + self.b(right)) * gate.sigmoid()

    inputs = [torch.randn(2, n, dtype=DOUBLE) for n in (4, 5, 3)]
    explanation = assert_equals_single_calls(fxlrp.compile(Two().double().eval(), "conserving"), *inputs)
    assert explanation.relevance[2].shape == (2, 3, 3)
    assert not explanation.relevance[2].any()


class Around(nn.Module):
    """One linear map, then an operation of its own, then a head that makes all of its relevance different."""

    def __init__(self, operation, width):
        super().__init__()
        self.operation, self.first, self.head = operation, nn.Conv2d(2, 4, 1), nn.LazyLinear(width)

    def forward(self, x):
        return self.head(self.operation(self.first(x)).flatten(1))


OPERATIONS = {
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "dilated max pool": lambda x: F.max_pool2d(x, 2, 2, dilation=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "windows": lambda x: x.unfold(2, 3, 2),
    "patches": lambda x: F.unfold(x, 3, stride=2),
    "patches and back": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "index": lambda x: x[:, [0, 2, 2]],
    "index of two axes": lambda x: x[:, :, [0, 1, 1], [2, 3, 3]],
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "running sum": lambda x: x.cumsum(2),
    "largest": lambda x: x.topk(3, dim=3)[0],
    "maximum": lambda x: x.amax((2, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "masked": lambda x: x.masked_fill(torch.arange(8) > 5, 0.0),
    "parts": lambda x: torch.cat([x.chunk(2, 1)[1], x[:, :1]], 1),
    "einsum": lambda x: torch.einsum("bchw,bkhw->bck", x, x.relu()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_explained_as_by_single_calls(name):
    x = torch.randn(2, 2, 8, 8)
    model = Around(OPERATIONS[name], 3)
    model(x)
    assert_equals_single_calls(fxlrp.compile(model.double().eval(), "conserving"), x.double())


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_half_precision_is_explained_as_by_single_calls(kind):
    model, x = RandomNet(EVERY_SKIP).eval(), torch.randn(2, 3, 12, 12)
    if kind == "bfloat16":
        assert_equals_single_calls(fxlrp.compile(model.bfloat16(), "conserving"), x.bfloat16(), limit=1e-5)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_equals_single_calls(fxlrp.compile(model, "conserving"), x, limit=1e-5)


# What targets may be --------------------------------------------------------------------------------


def test_a_tensor_gives_several_classes_per_item(model, x):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.1", "head"])
    target = torch.tensor([[0, 4], [1, 1], [3, 2]])
    explanation = explainer(x, target=target)
    assert torch.equal(explanation.target, target)
    for k in range(2):
        call = explainer(x, target[:, k])
        assert_close(explanation.relevance[:, k], call.relevance, 1e-12)
        assert_close(explanation.start[:, k], call.start, 1e-12)
        for name, relevance in call.checkpoints.items():
            assert_close(explanation.checkpoints[name][:, k], relevance, 1e-12)
    assert torch.equal(explanation.output, model(x))


@pytest.mark.parametrize("same", [(1, 3), range(1, 4, 2), [np.int64(1), 3], torch.tensor([[1, 3]] * 3)])
def test_a_list_of_classes_applies_to_every_item(model, x, same):
    explainer = fxlrp.compile(model, "conserving")
    expected = explainer(x, target=[1, 3])
    assert expected.target.tolist() == [[1, 3]] * 3
    assert torch.equal(explainer(x, target=same).relevance, expected.relevance)
    assert torch.equal(explainer(x, same).relevance, expected.relevance)


def test_one_class_in_a_list_keeps_the_target_axis(model, x):
    explainer = fxlrp.compile(model, "conserving")
    assert_close(explainer(x, target=[2]).relevance, explainer(x, target=2).relevance.unsqueeze(1), 1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_give_the_same_explanation(model, x, chunk):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.1"])
    whole, parts = explainer(x, target=range(5)), explainer(x, target=range(5), chunk=chunk)
    assert_close(parts.relevance, whole.relevance, 1e-12)
    assert_close(parts.checkpoints["blocks.1"], whole.checkpoints["blocks.1"], 1e-12)
    assert torch.equal(parts.target, whole.target)
    assert torch.equal(parts.output, whole.output)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], "at least one, not []"),
        ([0, True], "a list of targets holds class numbers"),
        ([0, "cat"], "a list of targets holds class numbers"),
        ([0, 5], "class 5 is out of range: the model has 5 classes"),
        ([-1], "class -1 is out of range"),
        (torch.zeros(3, 0, dtype=torch.long), "one class per item, shape (3,), or several, (3, targets), not (3, 0)"),
        (torch.zeros(2, 3, dtype=torch.long), "not (2, 3)"),
        (torch.zeros(3, 1, 1, dtype=torch.long), "not (3, 1, 1)"),
        ({0, 1}, "several ints or an integer tensor, not set"),
    ],
)
def test_an_invalid_target_is_rejected(model, x, target, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        fxlrp.compile(model, "conserving")(x, target=target)


@pytest.mark.parametrize("chunk", [0, -1, True, 1.5])
def test_an_invalid_chunk_is_rejected(model, x, chunk):
    with pytest.raises(InputError, match="chunk= is how many targets or conditions"):
        fxlrp.compile(model, "conserving")(x, target=[0, 1], chunk=chunk)


def test_a_ledger_of_several_targets_is_rejected(model, x):
    with pytest.raises(TargetError, match="one target per item"):
        fxlrp.compile(model, "conserving").ledger(x, target=[0, 1])


# How it runs ----------------------------------------------------------------------------------------


def test_denominators_are_computed_once_for_all_targets(model, x):
    calls = []

    class Counted(fxlrp.rules.ZPlus):
        """Notes in whose batch its denominators are computed."""

        def parts(self, layer):
            terms = [[term._replace(x=counted(term.x)) for term in part.terms] for part in super().parts(layer)]
            return [part._replace(terms=t) for part, t in zip(super().parts(layer), terms, strict=True)]

    @fxlrp.rules.primitives.primitive
    def counted(value):
        calls.append(torch._C._functorch.is_batchedtensor(value))
        return value

    preset = fxlrp.Preset("counted", linear=Counted(), first=Counted())
    fxlrp.compile(model, preset)(x, target=range(5))
    assert len(calls) > 5
    assert not any(calls)


def test_a_custom_start_is_called_for_each_target(model, x):
    asked = []

    def start(output, target):
        asked.append(target.tolist())  # nothing that vmap could do
        return torch.zeros_like(output).scatter(1, target[:, None], -1.0)

    explainer = fxlrp.compile(model, "conserving", start=start)
    assert_equals_single_calls(explainer, x)
    assert asked[:3] == [[0] * 3, [2] * 3, [1] * 3]
    with pytest.raises(StartError, match="must return relevance like the output"):
        fxlrp.compile(model, "conserving", start=lambda output, target: output.sum())(x, target=[0, 1])


@pytest.mark.parametrize("start", ["logit", "one", "output"])
def test_named_starts_explain_as_by_single_calls(model, x, start):
    assert_equals_single_calls(fxlrp.compile(model, "conserving", start=start), x)


def test_a_rule_that_reads_numbers_is_rejected(model, x):
    class Peeking(fxlrp.rules.SymmetricSplit):
        def __call__(self, relevance, skip, residual, **supports):
            return super().__call__(peeked(relevance), skip, residual, **supports)

    @fxlrp.rules.primitives.primitive
    def peeked(relevance):
        return relevance * (relevance.sum().item() != 0)

    explainer = fxlrp.compile(model, "conserving", split=Peeking())
    assert explainer(x, target=1).relevance.any()
    with pytest.raises(RuleError, match="for several targets or conditions at once; explain them one by one"):
        explainer(x, target=[0, 1])


def test_a_call_with_several_targets_leaves_single_calls_unchanged(model, x):
    explainer = fxlrp.compile(model, "conserving")
    before = explainer(x, target=1)
    explainer(x, target=[0, 1])
    after = explainer(x, target=1)
    assert torch.equal(before.relevance, after.relevance)
    assert explainer.graph_module(x, None)["relevance"][0].shape == x.shape


def test_several_targets_follow_the_model_and_its_precision(model, x):
    explainer = fxlrp.compile(model, "conserving")
    explainer(x, target=[0, 1])
    with torch.no_grad():
        model.head.weight.mul_(-1)
    assert_equals_single_calls(explainer, x)
    assert_equals_single_calls(explainer.float(), x.float(), limit=1e-5)
    with torch.inference_mode():
        assert_equals_single_calls(explainer, x.float(), limit=1e-5)


def test_several_targets_can_be_differentiated(model, x):
    x = x[:2].requires_grad_()
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    (together,) = torch.autograd.grad(explainer(x, target=[0, 1]).relevance.square().sum(), x)
    alone = sum(torch.autograd.grad(explainer(x, target=t).relevance.square().sum(), x)[0] for t in (0, 1))
    assert_close(together, alone, 1e-10)
    assert not fxlrp.compile(model, "conserving")(x, target=[0, 1]).relevance.requires_grad


@pytest.mark.parametrize("target", [None, 1, [0, 2, 1]])
def test_the_explainers_heatmap_sums_over_channels_alone(model, x, target):
    explainer = fxlrp.compile(model, "conserving")
    relevance = explainer(x, target=target).relevance
    assert torch.equal(explainer.heatmap(x, target=target), relevance.sum(dim=-3))


def test_a_series_has_a_heatmap_too():
    model, x = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).eval(), torch.randn(2, 2, 8)
    explainer = fxlrp.compile(model, "conserving")
    assert torch.equal(explainer.heatmap(x, target=[0, 1]), explainer(x, target=[0, 1]).relevance.sum(dim=2))


def test_heatmaps_keep_the_target_axis(model, x):
    explanation = fxlrp.compile(model, "conserving")(x, target=[0, 1])
    maps = fxlrp.heatmap(explanation.relevance)
    assert maps.shape == (3, 2, 12, 12)
    assert torch.equal(maps[1, 1], fxlrp.heatmap(explanation.relevance[1, 1]))
    assert torch.equal(fxlrp.quantize_heat(maps)[1, 1], fxlrp.quantize_heat(maps[1, 1]))
