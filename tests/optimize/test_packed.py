"""``pack_weights``: weights in the processor's own layout give the same explanation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from optimize_checks import Calls, assert_leaves_tokens_alone, assert_same, calls, explained
from optimize_nets import SMALL, random_net, seeded_weights
from torch import nn
from weight_changes import assigned, data_in_place, in_place, loaded

import fxlrp
from fxlrp.passes.optimize import NAMES, PACK_WEIGHTS, packed

needs_packing = pytest.mark.skipif(
    not packed.can_pack([torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)]), reason="torch without oneDNN"
)


class Wide(nn.Module):
    """Convolutions with weights that are worth packing: plain, in groups, at a stride, of one place, dilated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(128, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.grouped, self.down = nn.Conv2d(64, 256, 3, padding=1, groups=4), nn.Conv2d(256, 128, 1, 2)
        self.dilated, self.head = nn.Conv2d(128, 32, (3, 3), padding=(2, 4), dilation=(2, 2)), nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(F.relu(self.stem(x)))))
        x = self.down(F.relu(self.grouped(x)))
        return self.head(F.relu(self.dilated(F.relu(x))).mean((2, 3)))


def wide():
    torch.manual_seed(0)
    return seeded_weights(Wide())


def image(batch=1, height=10, width=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator).to(memory_format=torch.channels_last)


PACKING = ("mkldnn_reorder_conv2d_weight", "_reorder_convolution_weight")
ON_PACKED = ("_convolution_pointwise",)


def packs(explainer, x, **options):
    """How many weights a call packs, and how many convolutions run on packed ones."""
    seen = calls(explainer, x, **options)
    return len(seen.of(*PACKING)), len(seen.of(*ON_PACKED))


def assert_explains_as_unpacked(explainer, model, x, **options):
    explanation = explainer(x, **options)
    assert torch.equal(explanation.output, model(x))
    unpacked = tuple(name for name in NAMES if name != PACK_WEIGHTS)
    assert_same(explanation, explained(model, x, optimize=unpacked), 1e-5)
    assert_same(explanation, explained(model, x, optimize=False), 1e-5)


@needs_packing
def test_weights_are_packed_at_the_second_call_with_a_shape():
    model, x = wide(), image()
    explainer = fxlrp.compile(model, "conserving")
    assert packs(explainer, x) == (0, 0)
    packed_now, run = packs(explainer, x)
    assert packed_now == run > 6  # each way, forward and back
    assert packs(explainer, x) == (0, run)
    assert packs(explainer, image(batch=2)) == (0, 0)
    assert packs(explainer, image(batch=2)) == (run, run)


@needs_packing
def test_packed_weights_give_the_same_explanation():
    model, x = wide(), image(batch=2)
    for preset in ("conserving", "epsilon_plus"):
        explainer, plain = fxlrp.compile(model, preset), explained(model, x, optimize=False, preset=preset)
        for _ in range(3):
            explanation = explainer(x)
            assert torch.equal(explanation.output, model(x))
            assert_same(explanation, plain, 1e-5 if preset == "conserving" else 1e-4)


@needs_packing
@pytest.mark.parametrize("optimize", [(PACK_WEIGHTS,), (PACK_WEIGHTS, "fold_weights"), NAMES], ids=len)
def test_weights_are_packed_only_where_they_are_kept(optimize):
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model, "conserving", optimize=optimize), explained(model, x, optimize=False)
    for _ in range(3):
        assert_same(explainer(x), plain, 1e-5)
    assert (packs(explainer, x)[1] > 0) == ("fold_weights" in optimize)  # nothing else keeps them from call to call


@needs_packing
def test_shapes_may_change_between_calls():
    model = wide()
    explainer = fxlrp.compile(model, "conserving")
    shapes = [(1, 10, 10)] * 3 + [(2, 10, 10)] * 3 + [(1, 9, 12), (1, 10, 10), (1, 9, 12), (1, 9, 12), (2, 10, 10)]
    plain = {shape: explained(model, image(*shape), optimize=False) for shape in set(shapes)}
    for shape in shapes:
        explanation = explainer(image(*shape))
        assert torch.equal(explanation.output, model(image(*shape)))
        assert_same(explanation, plain[shape], 1e-5)


@needs_packing
@pytest.mark.parametrize("change", [in_place, data_in_place, loaded, assigned])
def test_packed_weights_follow_changes(change):
    model, x = wide(), image()
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(2):
        for _ in range(3):
            explanation = explainer(x)
        assert torch.equal(explanation.output, model(x))
        assert_same(explanation, explained(model, x, optimize=False), 1e-5)
        change(model)
    assert_explains_as_unpacked(explainer, model, x)


@needs_packing
def test_checkpoints_and_heatmaps_by_packed_weights_are_the_same():
    model, x = wide(), image(batch=2)
    options = {"checkpoints": ("grouped", "dilated", "head")}
    explainer, plain = fxlrp.compile(model, **options), fxlrp.compile(model, optimize=False, **options)
    for _ in range(3):
        assert_same(explainer(x), plain(x), 1e-5)
        assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-5)
    assert packs(explainer, x)[1]
    with Calls() as seen:
        explainer.heatmap(x)
    assert seen.of(*ON_PACKED)


@needs_packing
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_models_of_either_layout_are_explained_the_same(memory):
    model, x = wide().to(memory_format=memory), image()
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(3):
        assert_explains_as_unpacked(explainer, model, x)


@needs_packing
@pytest.mark.parametrize("options", [{"target": [0, 1]}, {"conditions": [{"conv": [1]}, {"conv": [2]}]}])
def test_several_targets_and_conditions_run_on_packed_weights(options):
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "conserving", optimize=False)
    expected = plain(x, **options).relevance
    for _ in range(3):
        assert_close(explainer(x, **options).relevance, expected, 1e-5)
    assert packs(explainer, x, **options)[1]


@needs_packing
def test_some_calls_run_without_packed_weights():
    model, x = wide(), image()
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(3):
        explainer(x)
    assert packs(explainer, x)[1]
    for other in (x.contiguous(), x.clone().contiguous().requires_grad_()):
        assert [packs(explainer, other) for _ in range(3)] == [(0, 0)] * 3
    for _ in range(3):
        seen = calls(explainer.ledger, x)
        assert not seen.of(*PACKING, *ON_PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        assert [packs(explainer, x) for _ in range(3)] == [(0, 0)] * 3
    double = fxlrp.compile(copy.deepcopy(model).double(), "conserving")
    assert [packs(double, x.double()) for _ in range(3)] == [(0, 0)] * 3
    left_out = fxlrp.compile(model, "conserving", optimize=tuple(name for name in NAMES if name != PACK_WEIGHTS))
    assert [packs(left_out, x) for _ in range(3)] == [(0, 0)] * 3
    assert [packs(fxlrp.compile(model, "conserving", optimize=False), x) for _ in range(3)] == [(0, 0)] * 3


@needs_packing
def test_conditions_of_an_image_in_channels_last_are_explained_the_same():
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "conserving", optimize=False)
    for _ in range(3):
        for options in ({"target": [0, 1]}, {"conditions": {"conv": list(range(20))}}, {}):
            assert_same(explainer(x, **options), plain(x, **options), 1e-5)


@needs_packing
def test_gradients_of_an_image_in_channels_last_are_the_same():
    model, x = wide(), image()
    explainer = fxlrp.compile(model, "conserving", differentiable=True)
    for _ in range(3):
        explanation = explainer(x)
        assert explanation.relevance.grad_fn is not None
        assert packs(explainer, x) == (0, 0)
    with torch.no_grad():
        for _ in range(3):
            assert not explainer(x).relevance.requires_grad
        assert packs(explainer, x)[1]  # nothing is recorded, so it may
    gradient = torch.autograd.grad(explainer(x).relevance.square().sum(), model.conv.weight)[0]
    plain = fxlrp.compile(model, "conserving", differentiable=True, optimize=False)
    expected = torch.autograd.grad(plain(x).relevance.square().sum(), model.conv.weight)[0]
    assert_close(gradient, expected, 1e-4)


@needs_packing
def test_packed_inference_tensors_give_the_same_explanation():
    with torch.inference_mode():
        model = wide()
    x = image()
    explainer = fxlrp.compile(model, "conserving")
    for _ in range(3):
        assert_same(explainer(x), explained(model, x, optimize=False), 1e-5)
        with torch.inference_mode():
            model.conv.weight.mul_(-1)
            assert_same(explainer(x), explained(model, x, optimize=False), 1e-5)


@needs_packing
def test_small_weights_are_not_packed():
    model, x = random_net(SMALL, dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last)
    explainer = fxlrp.compile(model, "conserving")
    assert [packs(explainer, x) for _ in range(3)] == [(0, 0)] * 3


CASES = [
    ((64, 64, 3, 3), 1, 1, 1, 1), ((64, 64, 3, 3), 2, 1, 1, 1), ((256, 16, 3, 3), 1, 1, 1, 4),
    ((256, 1, 7, 7), 1, 3, 1, 256), ((256, 256, 1, 1), 1, 0, 1, 1), ((128, 256, 1, 1), 2, 0, 1, 1),
    ((32, 64, 5, 5), 1, 4, 2, 1), ((512, 128, 1, 1), 1, 0, 1, 2), ((64, 64, 1, 9), 1, 0, 1, 1),
]  # fmt: skip


@needs_packing
@pytest.mark.parametrize(("shape", "stride", "padding", "dilation", "groups"), CASES)
@pytest.mark.parametrize("ours", [True, False])
def test_a_convolution_by_packed_weights_is_the_same(shape, stride, padding, dilation, groups, ours):
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    how = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    held = packed.Packed(weight.clone(), ours)
    for size in [(1, 12), (1, 12), (1, 12), (2, 12), (1, 12), (1, 15), (1, 15), (2, 15), (2, 15), (1, 12)]:
        x = torch.randn(size[0], shape[1] * groups, size[1], size[1] + 1).to(memory_format=torch.channels_last)
        for b in (bias, None):
            expected = F.conv2d(x, weight, b, *how)
            assert_close(held.convolve(x, b, how), expected, 1e-5)
        assert_close(held.convolve(x.contiguous(), bias, how), F.conv2d(x, weight, bias, *how), 1e-5)


@needs_packing
def test_packed_weights_of_our_own_are_kept_once():
    # Packed for one shape they are not kept in two forms, and they come back to the bit.
    weight = torch.randn(64, 64, 3, 3)
    how = [1, 1], [1, 1], [1, 1], 1
    held = packed.Packed(weight.clone(), ours=True)
    for size in (8, 8, 11, 11, 8, 8, 8):
        x = torch.randn(1, 64, size, size).to(memory_format=torch.channels_last)
        held.convolve(x, None, how)
    dense, laid_out, _ = held._state
    assert dense is None
    assert torch.equal(laid_out.to_dense(), weight)


def test_a_network_without_convolutions_is_not_packed():
    assert_leaves_tokens_alone(PACK_WEIGHTS)
