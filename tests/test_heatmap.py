"""Heatmaps and heat quantization."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close

import fxlrp
from fxlrp import region_map
from fxlrp.errors import InputError
from fxlrp.heatmap import layer_map, stage_map


def test_heatmap_is_the_sum_over_channels():
    relevance = torch.randn(2, 3, 4, 5)
    assert torch.equal(fxlrp.heatmap(relevance), relevance.sum(1))
    assert torch.equal(fxlrp.heatmap(relevance[0]), relevance[0].sum(0))
    with pytest.raises(InputError, match=r"not \(2, 3\)"):
        fxlrp.heatmap(torch.zeros(2, 3))
    with pytest.raises(InputError, match="not tuple"):
        fxlrp.heatmap((relevance, relevance))


def test_bins_round_down_to_the_lower_edge_of_q_bins():
    heat = torch.linspace(0, 8, 17, dtype=torch.float64).reshape(1, 17)
    expected = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7]
    assert fxlrp.quantize_heat(heat).tolist() == [expected]
    assert len(fxlrp.quantize_heat(torch.randn(50, 50), levels=5).unique()) == 5


def test_linspace_equals_the_released_code():
    heat = torch.randn(3, 20, 20, dtype=torch.float64)
    got = fxlrp.quantize_heat(heat, method="linspace")
    for ours, theirs in zip(got, heat.numpy(), strict=True):
        levels = np.linspace(theirs.min(), theirs.max(), 8)
        expected = levels[np.searchsorted(levels, theirs, side="right") - 1]
        assert np.abs(ours.numpy() - expected).max() < 1e-12
        assert ours.max() == theirs.max()


@pytest.mark.parametrize("method", ["bins", "linspace"])
def test_each_map_has_its_own_levels_and_a_constant_map_is_unchanged(method):
    maps = torch.stack([torch.full((4, 4), 0.3), torch.randn(4, 4)])
    got = fxlrp.quantize_heat(maps, method=method)
    assert torch.equal(got[0], maps[0])
    assert torch.equal(got[1], fxlrp.quantize_heat(maps[1], method=method))
    zeros = torch.zeros(4, 4)
    assert torch.equal(fxlrp.quantize_heat(zeros, method=method), zeros)


@pytest.mark.parametrize("method", ["bins", "linspace"])
def test_quantizing_twice_changes_nothing_and_keeps_order(method):
    heat = torch.randn(30, 30, dtype=torch.float64)
    once = fxlrp.quantize_heat(heat, method=method)
    assert (once <= heat + 1e-12).all()
    order = heat.flatten().argsort()
    assert (once.flatten()[order].diff() >= -1e-12).all()


@pytest.mark.parametrize(
    "arguments",
    [{"levels": 0}, {"levels": 2.5}, {"levels": True}, {"method": "ceil"}, {"levels": 1, "method": "linspace"}],
)
def test_invalid_quantization_is_an_error(arguments):
    with pytest.raises(InputError, match=r"levels|method"):
        fxlrp.quantize_heat(torch.zeros(2, 2), **arguments)
    with pytest.raises(InputError, match="floating point map"):
        fxlrp.quantize_heat(torch.zeros(1, 3, 3, 2, 2))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)], ids=["channels first", "channels last"])
def test_map_inside_a_network_is_enlarged_to_the_picture(order):
    relevance = torch.zeros(8, 3, 4)
    relevance[:, 1, 2] = 0.125
    enlarged = layer_map(relevance.permute(order), 33, 44)
    assert enlarged.shape == (33, 44)
    assert enlarged[16, 27] == enlarged.max() == 1  # the middle of its cell
    assert enlarged[:5].abs().max() == enlarged[:, :16].abs().max() == 0


@pytest.mark.parametrize(("shape", "size"), [((8, 7, 10), (224, 320)), ((8, 8, 11), (29, 43)), ((8, 1, 1), (5, 5))])
def test_sizes_that_were_rounded_match_the_picture(shape, size):
    assert torch.allclose(layer_map(torch.ones(shape), *size), torch.full(size, 8.0))


@pytest.mark.parametrize("before", [0, 1, 5])
def test_tokens_before_the_patches_are_left_out(before):
    tokens = torch.zeros(before + 12, 6)
    tokens[:before] = 100
    tokens[before + 5] = 0.5  # the second row, the second column
    enlarged = layer_map(tokens, 33, 44)
    assert enlarged.shape == (33, 44)
    assert enlarged[16, 16] == enlarged.max() == 3
    assert enlarged[:5].abs().max() == 0


@pytest.mark.parametrize("shape", [(8,), (190, 768), (8, 4, 12), (2, 8, 4, 4)])
def test_relevance_without_rows_and_columns_of_the_picture_is_no_map(shape):
    assert layer_map(torch.ones(shape), 64, 64) is None


def test_stage_map_is_the_mean_of_maps_that_keep_their_sums():
    torch.manual_seed(0)
    picture, inside = torch.randn(2, 3, 12, 18, dtype=torch.float64), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    small = F.interpolate(inside.sum(1, keepdim=True), (12, 18), mode="bilinear")[:, 0] / 9
    found = stage_map([picture, inside], 12, 18)
    torch.testing.assert_close(found, (picture.sum(1) + small) / 2)
    torch.testing.assert_close(small.sum((1, 2)), inside.sum((1, 2, 3)))
    tokens = inside.flatten(2).transpose(1, 2)
    before = torch.cat([torch.ones(2, 1, 5, dtype=torch.float64), tokens], dim=1)
    for other in (inside.permute(0, 2, 3, 1), tokens, before):
        torch.testing.assert_close(stage_map([other], 12, 18), small)


def test_smoothed_map_keeps_its_sum_and_constant_regions():
    spike = torch.zeros(1, 1, 21, 30, dtype=torch.float64)
    spike[0, 0, 10, 15] = 2
    spike[0, 0, 0, 29] = -1  # in a corner nothing is lost either
    found = stage_map([spike], 21, 30, sigma=2.0)
    torch.testing.assert_close(found.sum((1, 2)), torch.tensor([1.0], dtype=torch.float64))
    profile = torch.exp(-(torch.arange(-3, 4, dtype=torch.float64) ** 2) / 8)
    torch.testing.assert_close(found[0, 10, 12:19] / found[0, 10, 15], profile, rtol=1e-4, atol=1e-4)
    even = stage_map([torch.ones(1, 1, 40, 40)], 40, 40, sigma=1.0)
    torch.testing.assert_close(even[:, 8:-8, 8:-8], torch.ones(1, 24, 24))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "one stage"),
        ([torch.ones(2, 7)], r"\(2, 7\) has no rows"),
        ([(torch.ones(2), torch.ones(2))], "tuple"),
        ([torch.ones(2, 1, 8, 8), torch.ones(1, 1, 4, 4)], "of 2, 1 items"),
    ],
)
def test_invalid_stages_are_errors(stages, message):
    with pytest.raises(InputError, match=message):
        stage_map(stages, 8, 8)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_invalid_sigma_is_an_error(sigma):
    with pytest.raises(InputError, match="sigma"):
        stage_map([torch.ones(1, 1, 8, 8)], 8, 8, sigma=sigma)


def test_a_region_map_gives_segments_one_value_and_keeps_the_sum():
    pytest.importorskip("skimage")
    images = torch.zeros(2, 3, 40, 40)
    images[:, :, :, 20:] = 1  # two halves
    relevance = torch.randn(2, 3, 40, 40)
    found = region_map(relevance, images, scales=(100,))
    assert_close(found.sum((1, 2)), relevance.sum((1, 2, 3)), 1e-4)
    for half in (slice(0, 18), slice(22, 40)):
        assert torch.allclose(found[:, :, half], found[:, :1, half.start : half.start + 1])
    assert torch.equal(region_map(relevance.sum(1), images, scales=(100,)), found)
    assert_close(region_map(relevance, images).sum((1, 2)), relevance.sum((1, 2, 3)), 1e-4)
    for wrong in ({"scales": ()}, {"scales": (0,)}, {"smallest": 0}):
        with pytest.raises(InputError, match="give positive numbers"):
            region_map(relevance, images, **wrong)
    with pytest.raises(InputError, match="of the same pictures"):
        region_map(relevance[:1], images)


@pytest.mark.parametrize("wrong", [
    {"scales": 100.0}, {"scales": "50"}, {"smallest": 10.5}, {"images": torch.rand(1, 3, 8, 8) > 0.5},
    {"images": torch.full((1, 3, 8, 8), float("nan"))}, {"relevance": torch.full((1, 3, 8, 8), float("inf"))},
], ids=["a number", "text", "part of a pixel", "booleans", "NaN", "infinity"])  # fmt: skip
def test_a_map_of_regions_is_made_of_numbers(wrong):
    with pytest.raises(InputError):
        fxlrp.region_map(**{"relevance": torch.rand(1, 3, 8, 8), "images": torch.rand(1, 3, 8, 8), **wrong})


def test_a_map_of_regions_keeps_the_sum_of_integers():
    pytest.importorskip("skimage")
    relevance = torch.arange(64).reshape(1, 8, 8)
    found = fxlrp.region_map(relevance, torch.rand(1, 3, 8, 8), smallest=4)
    assert float(found.sum()) == pytest.approx(float(relevance.sum()))


@pytest.mark.parametrize("wrong", [{"sigma": "a"}, {"height": 0}, {"width": 8.0}])
def test_a_map_of_stages_has_a_size_in_pixels(wrong):
    with pytest.raises(InputError):
        fxlrp.stage_map([torch.rand(1, 3, 8, 8)], **{"height": 8, "width": 8, **wrong})
