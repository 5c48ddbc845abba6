"""``fold_weights``: what depends on weights alone is computed once, and follows every change of them."""

import copy

import pytest
import torch
from checks import assert_close
from optimize_checks import DOUBLE, assert_same, calls, explained
from optimize_nets import signed, tour, weight_shapes
from torch import nn
from weight_changes import (
    CHANGES,
    assert_follows,
    assigned,
    data_copied,
    data_in_place,
    data_replaced,
    in_place,
    loaded,
    network,
    replaced,
)

import fxlrp
from fxlrp.common import tensors


def test_no_weight_is_clamped_at_the_second_call():
    model, x = tour()
    shapes = weight_shapes(model)
    changes = ("clamp", "clamp_min", "clamp_max", "relu", "flip", "maximum")
    plain, folded = fxlrp.compile(model, "conserving", optimize=False), fxlrp.compile(model, "conserving")
    assert calls(plain, x).of(*changes, shapes=shapes)
    assert calls(plain, x).of(*changes, shapes=shapes)
    assert calls(folded, x).of(*changes, shapes=shapes)
    assert not calls(folded, x).of(*changes, shapes=shapes)


def test_two_explainers_of_one_model_follow_its_weights():
    model, x = network()
    first, second = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "epsilon_plus")
    for _ in range(2):
        assert_follows(first, model, x)
        assert_follows(second, model, x, preset="epsilon_plus")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-0.9)


def test_sizes_and_batches_may_take_turns():
    model, _ = network()
    explainer = fxlrp.compile(model, "conserving")
    shapes = [(1, 3, 16, 16), (3, 3, 24, 16), (2, 3, 16, 16)]
    images = [torch.randn(shape, dtype=DOUBLE) for shape in shapes]
    for image in (*images, *reversed(images), images[0].to(memory_format=torch.channels_last), images[1]):
        assert_follows(explainer, model, image)


def test_single_targets_several_targets_and_heatmaps_may_take_turns():
    model, x = network()
    explainer, plain = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "conserving", optimize=False)
    for _ in range(2):
        assert_same(explainer(x, target=[0, 2]), plain(x, target=[0, 2]))
        assert_same(explainer(x), plain(x))
        assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-12)
        with torch.no_grad():
            model.stem.weight.mul_(-1)


NORMS_FOLDED = ("in_place", "data_in_place", "assigned", "statistics", "statistics_measured", "statistics_replaced")


@pytest.mark.parametrize(("name", "preset"), [
    *((name, "conserving") for name in CHANGES if not name.startswith("statistics")),
    *((name, "epsilon_plus") for name in NORMS_FOLDED),
])  # fmt: skip
def test_every_change_of_weights_is_followed(name, preset):
    model, x = network()
    explainer = fxlrp.compile(model, preset)
    before = explainer(x).relevance
    for _ in range(2):
        CHANGES[name](model)
        # Weights at random may leave an ε rule next to nothing to divide by.
        assert_follows(explainer, model, x, preset=preset, limit=1e-12 if preset == "conserving" else 1e-8)
    assert not torch.allclose(explainer(x).relevance, before)


@pytest.mark.parametrize("layout", [torch.t, lambda weight: weight.repeat(1, 2)[:, ::2]], ids=["turned", "with gaps"])
def test_changes_of_weights_in_any_layout_are_followed(layout):
    # An initialisation may leave a weight that is the view of another tensor.
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    model[0].weight = nn.Parameter(layout(torch.randn(6, 6, dtype=DOUBLE)))
    x, explainer = torch.randn(2, 6, dtype=DOUBLE), fxlrp.compile(model, "conserving")
    explainer(x)
    for change in (in_place, data_in_place, data_copied):
        change(model[:1])  # that layer alone
        assert_follows(explainer, model, x)
        model[0].weight.data.mul_(-0.7)
        assert_follows(explainer, model, x)


@pytest.mark.parametrize("form", [torch.channels_last, torch.channels_last_3d])
def test_changes_of_weights_in_channels_last_are_followed(form):
    dims = 2 if form is torch.channels_last else 3
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(convolution(3, 4, 3), nn.ReLU(), convolution(4, 4, 2), nn.Flatten(2)).double()
    model.append(_Mean(4)).double().eval().to(memory_format=form)
    x, explainer = torch.randn(2, 3, *[6] * dims, dtype=DOUBLE), fxlrp.compile(model, "conserving")
    explainer(x)
    for change in (data_in_place, in_place, data_copied, data_replaced):
        change(model)
        assert_follows(explainer, model, x)


class _Mean(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(x.mean(2))


@pytest.mark.parametrize("change", [in_place, data_in_place, loaded, assigned, replaced])
def test_heatmaps_and_several_targets_follow_changes(change):
    model, x = network()
    explainer = fxlrp.compile(model, "conserving")
    explainer.heatmap(x)
    explainer(x, target=[0, 1])
    change(model)
    plain = fxlrp.compile(copy.deepcopy(model), "conserving", optimize=False)
    assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-12)
    assert_same(explainer(x, target=[0, 1]), plain(x, target=[0, 1]))


def test_the_precision_of_the_model_is_followed():
    model, x = network()
    explainer = fxlrp.compile(model, "conserving")
    for dtype, limit in ((DOUBLE, 1e-12), (torch.float32, 1e-5), (DOUBLE, 1e-12)):
        model.to(dtype)
        for _ in range(2):
            assert_follows(explainer, model, x.to(dtype), limit=limit)


@pytest.mark.parametrize("name", ["in_place", "data_in_place", "loaded", "assigned", "replaced", "statistics", "SGD"])
def test_converted_copies_of_weights_follow_changes(name):
    model, x = network()
    explainer = fxlrp.compile(model, "epsilon_plus").to(torch.float32)
    for _ in range(2):
        afresh = explained(copy.deepcopy(model).float(), x.float(), optimize=False, preset="epsilon_plus")
        for _ in range(2):
            assert_close(explainer(x.float()).relevance, afresh.relevance, 1e-3)  # steep, in single precision
        CHANGES[name](model)


def test_an_explainer_may_change_precision_and_back():
    model, x = network()
    explainer = fxlrp.compile(model, "conserving")
    for dtype, limit in ((torch.float32, 1e-5), (DOUBLE, 1e-12), (torch.float32, 1e-5)):
        explainer.to(dtype)
        in_place(model)
        afresh = explained(copy.deepcopy(model).to(dtype), x.to(dtype), optimize=False)
        for _ in range(2):
            assert_same(explainer(x.to(dtype)), afresh, limit)


def test_a_copy_of_an_explainer_follows_its_own_model():
    model, x = network()
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    twin = copy.deepcopy(explainer)
    expected = explainer(x).relevance
    in_place(model)
    assert_close(twin(x).relevance, expected, 1e-12)
    assert_follows(explainer, model, x)


def test_a_copy_of_the_program_has_its_own_weights():
    model, x = signed()
    explainer = fxlrp.compile(model, "conserving")
    expected = explainer(x).relevance
    program = copy.deepcopy(explainer.graph_module)
    in_place(model)
    with torch.no_grad():
        (relevance,) = program(x, None)["relevance"]
        assert_close(relevance, expected, 1e-12)
        program.stem.weight.mul_(-1)
    assert_follows(explainer, model, x)


def test_unwatched_weights_are_noticed(monkeypatch):
    monkeypatch.setattr(tensors.Watch, "unchanged", lambda watch, weights: True)
    for name in ("in_place", "data_in_place", "replaced"):
        with pytest.raises(AssertionError):
            test_every_change_of_weights_is_followed(name, "conserving")
