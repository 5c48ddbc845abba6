"""``sum_channels``: a heatmap sums the weights of the first layer over channels, not relevance."""

from dataclasses import replace

import pytest
import torch.nn.functional as F
from checks import assert_close
from optimize_checks import CHOICES, assert_leaves_tokens_alone, calls, explained
from optimize_nets import signed, tour
from stacks import STACKS, LayerPlan, StackPlan, stack

import fxlrp
from fxlrp.passes.optimize import NAMES, transposes
from fxlrp.passes.optimize.channel_sums import sum_inputs
from fxlrp.steps import convolution as convolutions


@pytest.mark.parametrize("choice", ["all", "sum_channels alone", "all but known_sums", "all but fold_weights"])
def test_heatmaps_are_sums_of_relevance(choice):
    model, x = tour()
    plain, optimized = fxlrp.compile(model, optimize=False), fxlrp.compile(model, optimize=CHOICES[choice])
    relevance = plain(x).relevance
    assert_close(plain.heatmap(x), relevance.sum(1), 1e-12)
    for _ in range(2):
        assert_close(optimized.heatmap(x), relevance.sum(1), 1e-12)
    assert_close(optimized(x).relevance, relevance, 1e-12)  # whose channels stay apart


@pytest.mark.parametrize("name", STACKS)
def test_every_form_of_first_layer_has_the_same_heatmap(name):
    model, x = stack(replace(STACKS[name], layers=STACKS[name].layers[:1], zeros=True))
    relevance = explained(model, x, optimize=False).relevance
    assert_close(fxlrp.compile(model, optimize=NAMES).heatmap(x), relevance.sum(1), 1e-12)


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
def test_weights_are_summed_over_input_channels(dims):
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


def test_a_network_without_a_first_convolution_is_left_alone():
    assert_leaves_tokens_alone("sum_channels")
