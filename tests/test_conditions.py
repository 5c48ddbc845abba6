"""Conditional relevance: what goes through some channels of a module, in parts that add up to the whole."""

import re

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_unchanged, snapshot, tolerance
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from nets import EVERY_SKIP, BlockPlan, NetPlan, RandomNet, images_with_an_empty_one
from strategies import net_plans, token_net_plans
from test_recurrent import Recurrent
from test_several_targets import assert_equals_single_calls
from token_nets import WIDTH, RandomTokens
from torch import nn

import fxlrp
from fxlrp.errors import ConditionError, InputError, PatternError, RuleError, TargetError
from fxlrp.passes.channel_axes import channel_axes
from fxlrp.passes.facts import facts
from fxlrp.passes.request import Request
from fxlrp.rules.rule import REASONS
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.recipe import Recipe
from fxlrp.steps.batch_axis import rescale, rescale_along
from fxlrp.steps.primitives import along, primitive

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("no_vmap_loops")


@pytest.fixture
def model():
    return RandomNet(EVERY_SKIP).double().eval()


@pytest.fixture
def x():
    return images_with_an_empty_one()


def channels_of(explainer, name, *inputs, **named):
    """How many channels the output of a module has."""
    with pytest.raises(ConditionError, match=r"it has \d+ channels") as error:
        explainer(*inputs, conditions={name: [10**9]}, **named)
    return int(re.search(r"it has (\d+) channels", str(error.value))[1])


def assert_parts_add_up(explainer, name, *inputs, **named):
    """The maps of all channels of a module add up to the map without condition; in a branch, but for the rest."""
    count = channels_of(explainer, name, *inputs, **named)
    whole = explainer(*inputs, **named).by_input
    slices = explainer(*inputs, conditions=[{name: [c]} for c in range(count)] + [{name: []}], **named).by_input
    for key, relevance in slices.items():
        around = relevance[:, -1:]  # what passes by the module
        total = (relevance[:, :-1] - around).sum(1) + around[:, 0]
        if whole[key].any():
            assert_close(total, whole[key], 1e-10)


def assert_part_conserves(explainer, *inputs, conditions, absorbs=("condition",), **named):
    """Every node hands on what it receives of a part; masks alone take something away."""
    ledger = explainer.ledger(*inputs, conditions=conditions, **named)
    limit = tolerance(ledger.start.dtype) * ledger.start.abs()
    for row in ledger:
        assert (row.error.abs() <= limit).all(), row.node
    assert (ledger.error.abs() <= limit).all()
    for reason, amount in ledger.absorbed.items():
        assert reason in absorbs or not amount.any(), reason
    explanation = explainer(*inputs, conditions=conditions, **named)
    arrived = sum(relevance.flatten(1).sum(1) for relevance in explanation.by_input.values())
    assert ((arrived - ledger.relevance).abs() <= limit).all()
    return ledger


# Parts add up, and each conserves -------------------------------------------------------------------


@example(NetPlan([BlockPlan(groups=2, shared=True), BlockPlan(skip="padded", stride=2, nested=BlockPlan())]))
@examples(fast=6, slow=100)
@given(net_plans())
def test_parts_of_random_residual_networks_add_up_and_conserve(plan):
    torch.manual_seed(0)
    model, x = RandomNet(plan).double().eval(), torch.randn(3, 3, 12, 12, dtype=DOUBLE)
    x[1], x[2] = 0, 1
    explainer = fxlrp.compile(model, "conserving")
    for name in ("stem", "blocks.0", f"blocks.{len(plan.blocks) - 1}.conv1"):
        assert_parts_add_up(explainer, name, x)
        assert_part_conserves(explainer, x, conditions={name: [0, 2]})


@examples(fast=6, slow=100)
@given(token_net_plans())
def test_parts_of_random_networks_of_tokens_add_up_and_conserve(plan):
    torch.manual_seed(0)
    model, x = RandomTokens(plan).double().eval(), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE)
    x[1] = 0
    explainer = fxlrp.compile(model, "conserving")
    for name in ("embed", "blocks.0"):
        assert_parts_add_up(explainer, name, x)
        assert_part_conserves(explainer, x, conditions={name: [0, 2]}, absorbs=("condition", "constant"))


@pytest.mark.parametrize("preset", fxlrp.PRESETS)
def test_parts_by_every_preset_add_up_and_conserve(preset):
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).double().eval()
    explainer, x = fxlrp.compile(model, preset), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    for name in ("0", "1", "3", "4"):  # also a convolution that a norm is folded into
        assert_parts_add_up(explainer, name, x)
        assert_part_conserves(explainer, x, conditions={name: [0, 1]}, absorbs=("condition", "gradient", *REASONS))


@pytest.mark.parametrize("form", [{}, {"bidirectional": True, "num_layers": 2}, {"batch_first": False}])
def test_parts_of_an_lstm_add_up_and_conserve(form):
    model, x = Recurrent(False, **form).double().eval(), torch.randn(2, 6, 4, dtype=DOUBLE)
    x[1] = 0
    explainer = fxlrp.compile(model, "conserving")
    assert_parts_add_up(explainer, "lstm", x)
    assert_parts_add_up(explainer, "head", x)
    assert_part_conserves(explainer, x, conditions={"lstm": [1, 3]})


def test_parts_of_an_exported_transformer_add_up_and_conserve():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=60, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    text = {"input_ids": torch.randint(3, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    explainer = fxlrp.compile(model, "conserving")
    for name in ("bert.embeddings", "bert.encoder.layer.0"):
        assert_parts_add_up(explainer, name, **text)
        assert_part_conserves(explainer, conditions={name: [0, 5]}, **text)


def test_parts_of_a_signed_start_add_up(model, x):
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: output - output.mean())
    assert_parts_add_up(explainer, "blocks.1", x[:2])


def test_parts_of_positive_relevance_are_positive(model, x):
    explanation = fxlrp.compile(model, "conserving")(x, conditions=[{"blocks.1": [c]} for c in range(4)])
    assert explanation.relevance.min() > -1e-15
    assert explanation.relevance.any()


# What a part is -------------------------------------------------------------------------------------


def test_without_rescaling_a_part_is_the_masked_gradient_times_input():
    """By Epsilon(0) on a network without biases relevance is gradient × value: mask the gradient of the output."""
    plain = {"norm": False, "activation": "relu"}
    blocks = [BlockPlan(**plain), BlockPlan(skip="projection", stride=2, **plain), BlockPlan(skip="dense", **plain)]
    model = RandomNet(NetPlan(blocks, head_bias=False)).double().eval()
    x = torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    epsilon, signed = fxlrp.rules.Epsilon(1e-14), fxlrp.rules.SignedSplit(1e-14)
    preset = fxlrp.Preset("lrp-0", linear=epsilon, selection=fxlrp.rules.Winner(), split=signed)
    explainer = fxlrp.compile(model, preset, start="logit")
    for conditions in ({"blocks.1": [1, 3]}, {"blocks.0.conv1": [0]}, {"blocks.1": [0, 2], "stem": [1]}):
        part = explainer(x, target=1, conditions=conditions).relevance
        assert_close(part, gradient_times_input(model, x, 1, conditions), 1e-7)


def gradient_times_input(model, x, target, conditions):
    def masked(module, inputs, output, channels=()):
        mask = torch.zeros(output.shape[1], 1, 1, dtype=DOUBLE)
        mask[channels] = 1
        # The hook must see the gradient of this reader alone, not that of a module that reads on inside.
        output = output.clone()
        output.register_hook(lambda gradient: gradient * mask)
        return output

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *a, c=channels: masked(*a, channels=c))
        for name, channels in conditions.items()
    ]
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    for hook in hooks:
        hook.remove()
    return (gradient * x).detach()


def dense_part(layers, x, start, at, mask, *, rescale):
    """z⁺ through linear layers with ReLU, on matrices: the whole, and the part that ``mask`` keeps at one of them.

    To rescale, a layer hands what vanishing denominators keep to its inputs as its whole relevance goes.
    """
    values = [x]
    for weight in layers:
        values.append((weight @ values[-1]).clamp(min=0))
    whole, part = start.clone(), start.clone()
    for i in reversed(range(len(layers))):
        if i == at:
            part = part * mask
        w, v = layers[i].clamp(min=0), values[i].clamp(min=0)
        n, m = layers[i].clamp(max=0), values[i].clamp(max=0)
        z = w @ v + n @ m
        shares = (w * v + n * m) / torch.where(z > 0, z, float("inf"))[:, None]
        back, back_part = whole @ shares, part @ shares
        spread = back.abs() / back.abs().sum() if back.any() else torch.full_like(back, 1 / len(back))
        spread = spread * rescale
        whole, part = back + (whole.sum() - back.sum()) * spread, back_part + (part.sum() - back_part.sum()) * spread
    return whole, part


@pytest.mark.parametrize("vanishing", ["rescale", "absorb"])
def test_a_part_by_z_plus_equals_the_dense_formula(vanishing):
    torch.manual_seed(3)
    weights = [torch.randn(n, m, dtype=DOUBLE) for m, n in ((5, 6), (6, 4), (4, 3))]
    weights[1][2] = -weights[1][2].abs()  # an output without positive contribution
    weights[2][0, 2] = -1.0
    layers = [nn.Linear(*w.T.shape, bias=False).double() for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(weight)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    rule, x = fxlrp.rules.ZPlus(vanishing=vanishing), torch.randn(5, dtype=DOUBLE)
    start = torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE)
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=DOUBLE)
    explainer = fxlrp.compile(model, fxlrp.Preset("z+", linear=rule, first=None), start="one")
    part = explainer(x[None], target=1, conditions={"2": [1, 2]}).relevance[0]
    whole, expected = dense_part(weights, x, start, 1, mask, rescale=vanishing == "rescale")
    assert_close(explainer(x[None], target=1).relevance[0], whole, 1e-12)
    assert_close(part, expected, 1e-12)
    absorbed = explainer.ledger(x[None], target=1, conditions={"2": [1, 2]}).absorbed["stabilizer"]
    assert (absorbed > 0) == (vanishing == "absorb")


@examples(fast=25, slow=200)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_rescaling_a_part_is_linear_and_exact_for_the_whole(seed, signed, padded):
    torch.manual_seed(seed)
    share, received = torch.rand(4, 6, dtype=DOUBLE), torch.rand(4, 5, dtype=DOUBLE)
    if signed:
        share, received = share - 0.5, received - 0.5
    share[1] = 0
    share[2], received[2] = 0, 0
    support = (torch.rand(4, 6) > 0.5).double() if padded else None
    share = share if support is None else share * support
    whole = (share, received)
    parts = [(share * weight, received * torch.rand_like(received)) for weight in torch.rand(3, dtype=DOUBLE)]
    rest = tuple(w - sum(part) for w, part in zip(whole, zip(*parts, strict=True), strict=True))
    found = [rescale_along(*part, support, signed, whole=whole) for part in (*parts, rest)]
    assert_close(sum(found), rescale(*whole, support, signed), 1e-12)
    assert_close(rescale_along(*whole, support, signed, whole=whole), rescale(*whole, support, signed), 1e-12)
    carriers = torch.ones(4, 6) if support is None else support
    for (_, relevance), handed in zip(parts, found, strict=False):
        able = carriers.any(1)
        assert_close(handed.sum(1)[able], relevance.sum(1)[able], 1e-12)


def test_a_condition_inside_a_branch_leaves_the_skip_alone(model, x):
    explainer = fxlrp.compile(model, "conserving")
    slices = explainer(x, conditions=[{"blocks.0.conv2": []}, {"blocks.0.conv2": range(4)}]).relevance
    nothing, everything = slices.unbind(1)
    assert nothing.any()
    assert_close(everything, explainer(x).relevance, 1e-12)
    branch = next(row for row in explainer.ledger(x) if row.node == "blocks_0_conv2").received
    assert_close(nothing.flatten(1).sum(1) + branch, explainer(x).start, 1e-12)
    ledger = explainer.ledger(x, conditions={"blocks.0.conv2": []})
    assert_close(ledger.absorbed["condition"], branch, 1e-12)


def test_several_modules_are_masked_one_after_the_other(model, x):
    explainer = fxlrp.compile(model, "conserving")
    first, second = {"blocks.2": [0, 5]}, {"stem": [1, 2]}
    both = explainer(x, conditions={**first, **second}).relevance
    by_channel = [explainer(x, conditions={"blocks.2": [c], **second}).relevance for c in (0, 5)]
    assert_close(both, sum(by_channel), 1e-12)
    all_of_it = explainer(x, conditions={**first, "stem": range(4)}).relevance
    assert_close(all_of_it, explainer(x, conditions=first).relevance, 1e-12)
    ledger = assert_part_conserves(explainer, x, conditions={**first, **second})
    assert [row.path for row in ledger if row.kind == "condition"] == ["blocks.2", "stem"]


class Twice(nn.Module):
    def __init__(self, untraceable=False):
        super().__init__()
        self.untraceable = untraceable
        self.fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        if self.untraceable and x.shape[-1] != 4:  # control flow on shapes: no symbolic trace
            raise ValueError("width")
        return self.head(self.fc(self.fc(x)))


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_a_module_that_is_called_twice_is_masked_at_each_call(capture):
    model, x = Twice(capture == "export").double().eval(), torch.randn(2, 4, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving")
    part = explainer(x, conditions={"fc": [0, 1]})
    assert explainer.capture == capture
    ledger = assert_part_conserves(explainer, x, conditions={"fc": [0, 1]})
    assert [row.path for row in ledger if row.kind == "condition"] == ["fc", "fc"]

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = model.fc, nn.Sequential(*model.fc), model.head

        def forward(self, x):
            return self.head(self.two(self.one(x)))

    apart = fxlrp.compile(Apart().eval(), "conserving")
    assert_close(part.relevance, apart(x, conditions={"one": [0, 1], "two": [0, 1]}).relevance, 1e-12)


def test_the_output_and_the_embedding_can_be_conditioned():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 5)).double().eval()
    explainer, ids = fxlrp.compile(model, "conserving"), torch.randint(0, 9, (2, 4))
    whole = explainer(ids, target=1).relevance
    part = explainer(ids, target=1, conditions={"0": [2, 3]}).relevance
    expected = torch.zeros_like(whole)
    expected[..., 2:4] = whole[..., 2:4]
    assert torch.equal(part, expected)
    assert not explainer(ids, target=1, conditions={"2": [0]}).relevance.any()
    # A condition that keeps all runs the same steps on a copy; the last digit depends on the processor.
    kept = explainer(ids, target=1, conditions={"2": [1]}).relevance
    torch.testing.assert_close(kept, whole, rtol=1e-14, atol=1e-16)
    assert_part_conserves(explainer, ids, target=1, conditions={"0": [2, 3]})


# Masks ----------------------------------------------------------------------------------------------


def test_a_mask_may_stand_in_place_of_channels(model, x):
    explainer = fxlrp.compile(model, "conserving")
    by_number = explainer(x, conditions={"blocks.1": [1, 2]}).relevance
    numbers = torch.tensor([0, 1, 1, 0])
    for mask in (numbers.bool()[:, None, None], numbers.double()[:, None, None].expand(4, 3, 3)):
        assert_close(explainer(x, conditions={"blocks.1": mask}).relevance, by_number, 1e-12)
    half = explainer(x, conditions={"blocks.1": torch.tensor(0.5)}).relevance
    assert_close(half, 0.5 * explainer(x).relevance, 1e-12)
    left = torch.zeros(3)
    left[0] = 1
    slices = explainer(x, conditions=[{"blocks.1": left}, {"blocks.1": 1 - left}, {"blocks.1": [1, 2]}, {}]).relevance
    assert_close(slices[:, 0] + slices[:, 1], explainer(x).relevance, 1e-12)
    assert_close(slices[:, 2], by_number, 1e-12)
    assert_close(slices[:, 3], explainer(x).relevance, 1e-12)


def test_a_mask_applies_where_the_batch_is_not_in_front():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.fc(x.transpose(0, 1)).transpose(0, 1).mean(1))

    explainer = fxlrp.compile(SequenceFirst().double().eval(), "conserving")
    x = torch.randn(2, 5, 4, dtype=DOUBLE)
    step = torch.zeros(5, 1)
    step[3] = 1
    part = explainer(x, conditions={"fc": step}).relevance
    expected = torch.zeros_like(part)
    expected[:, 3] = explainer(x).relevance[:, 3]
    assert_close(part, expected, 1e-12)
    assert_parts_add_up(explainer, "fc", x)
    mixed = explainer(x, conditions=[{"fc": step}, {"fc": [1]}]).relevance
    assert_close(mixed[:, 1], explainer(x, conditions={"fc": [1]}).relevance, 1e-12)


# Several conditions ---------------------------------------------------------------------------------


def test_slice_k_has_target_k_and_condition_k(model, x):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.1", "stem"])
    conditions = [{"blocks.1": [0]}, {"stem": [1, 3]}, {"blocks.1": [2], "stem": [0]}]
    for target in ([0, 3, 1], torch.tensor([[0, 3, 1], [1, 1, 2], [4, 0, 2]])):
        slices = explainer(x, target=target, conditions=conditions)
        for k, condition in enumerate(conditions):
            call = explainer(x, target=slices.target[:, k].contiguous(), conditions=condition)
            assert_close(slices.relevance[:, k], call.relevance, 1e-12)
            assert_close(slices.start[:, k], call.start, 1e-12)
            for name, relevance in call.checkpoints.items():
                assert_close(slices.checkpoints[name][:, k], relevance, 1e-12)
    chunked = explainer(x, target=[0, 3, 1], conditions=conditions, chunk=2)
    assert_close(chunked.relevance, explainer(x, target=[0, 3, 1], conditions=conditions).relevance, 1e-12)


def test_one_target_serves_all_conditions_and_one_condition_all_targets(model, x):
    explainer = fxlrp.compile(model, "conserving")
    slices = explainer(x, target=2, conditions=[{"stem": [0]}, {"stem": [1]}])
    assert slices.target.tolist() == [[2, 2]] * 3
    assert_close(slices.start[:, 0], explainer(x, target=2).start, 1e-12)
    assert torch.equal(slices.output, model(x))
    assert_equals_single_calls(explainer, x, conditions={"blocks.0": [0, 1]})
    predicted = explainer(x, conditions=[{"stem": [0]}], chunk=1)
    assert torch.equal(predicted.target[:, 0], model(x).argmax(1))


def test_the_relevance_without_condition_is_computed_once(model, x):
    batched = {}

    class Noting(fxlrp.rules.ZPlus):
        def __call__(self, operation, value, weight, bias, relevance, **about):
            return super().__call__(operation, value, weight, bias, noted(relevance), **about)

    @primitive(linear="first")
    def noted(relevance):
        batched.setdefault(bool(torch._C._functorch.is_batchedtensor(relevance)), []).append(relevance.shape)
        return relevance

    explainer = fxlrp.compile(model, fxlrp.Preset("noting", linear=Noting(), first=Noting()))
    explainer(x, conditions=[{"blocks.0": [0]}, {"blocks.0": [1]}])
    assert len(batched[False]) > len(batched[True]) > 0


def test_checkpoints_above_a_mask_are_those_of_the_whole(model, x):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.1", "blocks.2"])
    part, whole = explainer(x, conditions={"blocks.1": [0]}).checkpoints, explainer(x).checkpoints
    assert torch.equal(part["blocks.2"], whole["blocks.2"])
    assert_close(part["blocks.1"].flatten(1).sum(1), explainer.ledger(x, conditions={"blocks.1": [0]}).relevance, 1e-12)


def test_conditions_leave_other_calls_and_the_model_unchanged(model, x):
    before = snapshot(model, x)
    explainer = fxlrp.compile(model, "conserving")
    plain, ledger = explainer(x), explainer.ledger(x)
    explainer(x, conditions={"blocks.1": [0]})
    explainer(x, conditions=[{"stem": [0]}, {}], target=[0, 1])
    assert torch.equal(explainer(x).relevance, plain.relevance)
    assert torch.equal(explainer.ledger(x).relevance, ledger.relevance)
    assert "condition" not in explainer.ledger(x).absorbed
    assert_unchanged(before, snapshot(model, x))


def test_programs_are_kept_by_module(model, x):
    engine = Engine(model, Recipe())
    calls = [engine.prepare((x,), {}, conditions=c) for c in (
        {"stem": [0], "blocks.1": [1]}, {"blocks.1": [2, 3], "stem": [1]}, {"stem": [0]},
    )]  # fmt: skip
    first, second, other = (engine.program(call, Request()) for call in calls)
    assert first is second
    assert first is not other


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast", "inference"])
def test_parts_add_up_in_other_precisions(kind):
    model, x = RandomNet(EVERY_SKIP).eval(), torch.randn(2, 3, 12, 12)
    if kind == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    explainer = fxlrp.compile(model, "conserving")
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast")
    with autocast, torch.inference_mode(kind == "inference"):
        whole = explainer(x).relevance
        parts = explainer(x, conditions=[{"blocks.1": [c]} for c in range(4)]).relevance
    assert parts.dtype == torch.float32
    assert_close(parts.sum(1), whole, 1e-5)


# Which axis is that of channels ---------------------------------------------------------------------


AXES = {
    "convolution": (lambda m, x: m.conv(x), 1),
    "activation": (lambda m, x: m.conv(x).relu() * 2, 1),
    "patches as tokens": (lambda m, x: m.conv(x).flatten(2).transpose(1, 2), 2),
    "pooled": (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1).flatten(1), 1),
    "pooled by a mean": (lambda m, x: m.conv(x).mean((2, 3)), 1),
    "channels last": (lambda m, x: m.dense(m.conv(x).permute(0, 2, 3, 1)), 3),
    "channels last and back": (lambda m, x: m.dense(m.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
    "concatenated": (lambda m, x: torch.cat([m.conv(x), m.conv(x).relu()], 1), 1),
    "a part": (lambda m, x: m.conv(x)[:, 2:], 1),
    "halves": (lambda m, x: m.conv(x).chunk(2, 1)[0], 1),
    "one place": (lambda m, x: m.conv(x)[:, :, 0], 1),
    "joined": (lambda m, x: m.conv(x) + m.conv(x).mean((2, 3), keepdim=True), 1),
    "gated": (lambda m, x: m.conv(x) * m.conv(x).mean((2, 3), keepdim=True).sigmoid(), 1),
    "padded": (lambda m, x: F.pad(m.conv(x), (1, 1)), 1),
    "stacked": (lambda m, x: torch.stack([m.conv(x), m.conv(x)], 1), 2),
    "resized": (lambda m, x: F.interpolate(m.conv(x), scale_factor=2), 1),
    "windows": (lambda m, x: m.conv(x).flatten(2).transpose(1, 2).reshape(2, 4, 4, 6), 3),
    "heads": (lambda m, x: m.conv(x).flatten(2).transpose(1, 2).reshape(2, 16, 2, 3), None),
    "mixed": (lambda m, x: m.conv(x).flatten(1), None),
    "averaged away": (lambda m, x: m.conv(x).mean(1), None),
    "normalised": (lambda m, x: F.layer_norm(m.conv(x).permute(0, 2, 3, 1), (6,)), 3),
    "normalised whole": (lambda m, x: F.layer_norm(m.conv(x), (6, 4, 4)), 1),
    "the input itself": (lambda m, x: x.relu(), None),
}


class Reaching(nn.Module):
    def __init__(self, reach):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.reach = reach

    def forward(self, x):
        return self.reach(self, x)


@pytest.mark.parametrize("name", AXES)
def test_the_channel_axis_is_found(name):
    reach, axis = AXES[name]
    x = torch.randn(2, 3, 4, 4)
    plan = Engine(Reaching(reach).eval(), Recipe(start="output")).prepare((x,), {}).plan
    axes = channel_axes(plan.forward.graph, plan.shapes([x]))
    assert axes[plan.explained] == axis
    assert all(facts(node).signal for node in axes)


# What is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"blocks.9": [0]}, PatternError, "'blocks.9' is no module of this model that is in its graph; its"),
        ({"blocks.0.squeeze": [0]}, PatternError, "dropout and identities leave no trace"),
        ({"blocks.1.squeeze.expand": [0]}, PatternError, "no relevance passes the output of this module"),
        ({"stem": [4]}, ConditionError, "channel 4 of 'stem' is out of range: it has 4 channels, 0 to 3"),
        ({"stem": [-1]}, ConditionError, "channel -1 of 'stem' is out of range"),
        ({"stem": 3}, ConditionError, "a list of channel numbers, or a mask, not 3"),
        ({"stem": [True]}, ConditionError, "a list of channel numbers, or a mask"),
        ({"stem": torch.tensor([1, 2])}, ConditionError, "channel numbers are given as a list"),
        ({"stem": torch.tensor(float("nan"))}, ConditionError, "NaN or infinity"),
        ({"stem": torch.ones(5, 1, 1)}, ConditionError, "must broadcast to its output without the batch, (4, 12, 12)"),
        ({"stem": torch.ones(1, 4, 1, 1)}, ConditionError, "has shape (1, 4, 1, 1)"),
        ({0: [1]}, ConditionError, "a dict from module names to channels"),
        ("stem", ConditionError, "or a list of such dicts, not str"),
        ([{"stem": [0]}, None], ConditionError, "not a list with NoneType"),
        ([], ConditionError, "names no module"),
        ({}, ConditionError, "names no module"),
        ([{}, {}], ConditionError, "names no module"),
    ],
)
def test_an_invalid_condition_is_rejected(model, x, conditions, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fxlrp.compile(model, "conserving")(x, conditions=conditions)


def test_mismatched_targets_and_conditions_are_rejected(model, x):
    explainer = fxlrp.compile(model, "conserving")
    with pytest.raises(ConditionError, match="2 conditions and 3 targets per item: explanation k has target k"):
        explainer(x, target=[0, 1, 2], conditions=[{"stem": [0]}, {"stem": [1]}])
    with pytest.raises(ConditionError, match="a ledger is of one condition"):
        explainer.ledger(x, conditions=[{"stem": [0]}])
    with pytest.raises(TargetError, match="a ledger is of one target"):
        explainer.ledger(x, target=[0], conditions={"stem": [0]})
    with pytest.raises(InputError, match="has shape"):
        explainer(x[0], conditions={"stem": [0]})


def test_a_module_of_several_outputs_is_rejected():
    class Two(nn.Module):
        def forward(self, x):
            return x.relu(), x.tanh()

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.two, self.head = nn.Linear(4, 4), Two(), nn.Linear(4, 3)

        def forward(self, x):
            left, right = self.two(self.fc(x))
            return self.head(left + right)

    explainer, x = fxlrp.compile(Around().eval(), "conserving"), torch.randn(2, 4)
    with pytest.raises(PatternError, match=r"relevance passes several outputs of this module \(two_relu, two_tanh\)"):
        explainer(x, conditions={"two": [0]})
    assert explainer(x, conditions={"fc": [0]}).relevance.any()


def test_channels_of_an_unknown_axis_are_rejected_and_a_mask_is_accepted():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(96, 3)).double().eval()
    explainer, x = fxlrp.compile(model, "conserving"), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    with pytest.raises(ConditionError, match=r"'1', \(2, 96\), is that of channels is not told .* give a mask"):
        explainer(x, conditions={"1": [0]})
    mask = torch.zeros(6, 16)
    mask[2] = 1
    by_mask = explainer(x, conditions={"1": mask.flatten()}).relevance
    assert_close(by_mask, explainer(x, conditions={"0": [2]}).relevance, 1e-12)


def test_parts_add_up_through_the_larger_of_two_signals():
    class Larger(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.fc(x)
            return self.head(torch.maximum(h.tanh(), 0.5 * h.flip(1)))

    explainer = fxlrp.compile(Larger().double().eval(), "conserving", start="logit")
    assert_parts_add_up(explainer, "head", torch.randn(2, 4).double())
    assert_parts_add_up(explainer, "fc", torch.randn(2, 4).double())


@primitive
def squared(relevance):
    return relevance * relevance.abs()


@primitive
def clamped(relevance):
    return relevance.clamp(min=0)


@along(clamped)
def clamped_along(relevance, *, whole):
    return relevance * (whole[0] > 0)


class Stepping(fxlrp.rules.Epsilon):
    """ε with a step of its own before it."""

    def __init__(self, step=None):
        super().__init__(1e-9)
        self.step = step

    def __call__(self, operation, x, weight, bias, relevance, **about):
        return super().__call__(operation, x, weight, bias, self.step(relevance), **about)


@pytest.mark.parametrize("step", [squared, torch.relu, lambda r: r + 1, lambda r: r * r, lambda r: r.clamp(min=0)])
def test_a_step_that_is_not_linear_is_rejected_by_name(step):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval(), torch.randn(2, 4).double()
    explainer = fxlrp.compile(model, fxlrp.Preset("step", linear=Stepping(step), first=None))
    assert explainer(x).relevance.isfinite().all()
    with pytest.raises(RuleError, match=r"linear in relevance, and \w+ in Stepping at _0 is not known to be"):
        explainer(x, conditions={"0": [0]})


@pytest.mark.parametrize("step", [clamped, fxlrp.rules.primitives.positive])
def test_a_step_may_declare_how_it_acts_on_a_part(step):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), torch.randn(2, 4).double()
    preset = fxlrp.Preset("step", linear=Stepping(step), first=None)
    explainer = fxlrp.compile(model, preset, start="logit")
    assert_parts_add_up(explainer, "1", x)
    assert_parts_add_up(explainer, "0", x)
