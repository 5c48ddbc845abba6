"""Grids of maps: every map in its cell, shared colour ranges, colour bars."""

import pytest
import torch

from fxlrp.errors import InputError
from fxlrp.maps.rendering import layout
from fxlrp.render import Cell, Line, colorize, grid, sheet


@pytest.fixture
def lines(monkeypatch):
    """What a grid hands to be drawn."""
    seen = []
    monkeypatch.setattr(layout, "sheet", lambda lines, **_: seen.extend(lines))
    return seen


def ramp(top):
    return torch.linspace(0, top, 16).view(4, 4)


MAPS = {"ours": torch.stack([ramp(1.0), ramp(2.0)]), "theirs": [-ramp(4.0), ramp(3.0)]}
PHOTOS = torch.rand(2, 3, 4, 4)


def test_grid_has_one_row_per_method_and_one_column_per_image(lines):
    grid(MAPS, PHOTOS, titles=["cat", "dog"], percentile=100)
    assert [line.label for line in lines] == ["photograph", "ours", "theirs"]
    assert [cell.caption for cell in lines[0].cells] == ["cat", "dog"]
    for line, colors in ((lines[1], "positive"), (lines[2], "symmetric")):
        assert (line.scale.colors, line.scale.limit) == (colors, None)
        for cell, heat in zip(line.cells, MAPS[line.label], strict=True):
            assert torch.equal(cell.picture, colorize(heat, colors, 100))
    assert (lines[0].cells[1].picture - PHOTOS[1].permute(1, 2, 0) * 255).abs().max() <= 0.5


def test_titles_are_above_the_first_row(lines):
    grid(MAPS, titles=["cat", "dog"], bars=False)
    assert [[cell.caption for cell in line.cells] for line in lines] == [["cat", "dog"], ["", ""]]
    assert lines[0].scale is None


def test_maps_of_a_method_can_share_a_range(lines):
    grid(MAPS, percentile=100, one_range="method")
    assert [line.scale.limit for line in lines] == [2, 4]
    assert torch.equal(lines[0].cells[0].picture, colorize(MAPS["ours"][0], "positive", limit=2.0))


def test_all_maps_can_share_a_range_and_colours(lines):
    grid(MAPS, percentile=100, one_range="all")
    assert [(line.scale.colors, line.scale.limit) for line in lines] == [("symmetric", 4)] * 2


def test_maps_on_photographs_differ_from_maps_alone(lines):
    grid(MAPS, PHOTOS, on_photos=True, one_range="method")
    on = lines[1].cells[0].picture
    assert on.shape == (4, 4, 3)
    assert not torch.equal(on, colorize(MAPS["ours"][0], "positive"))
    assert lines[1].scale.limit < 2  # the range is of what is seen, the blurred map


def test_sheet_contains_the_pictures_and_a_colour_bar():
    red = torch.zeros(10, 10, 3, dtype=torch.uint8)
    red[..., 0] = 255
    whole = grid({"a": torch.ones(1, 6, 6), "b": torch.ones(1, 6, 6)}, [red.permute(2, 0, 1) / 255])
    assert whole.dtype == torch.uint8
    assert whole.shape[2] == 3
    assert (whole == torch.tensor([255, 0, 0])).all(-1).sum() > 300 * 300
    inferno = colorize(torch.ones(1, 1), "positive")[0, 0]
    assert (whole == inferno).all(-1).sum() > 2 * 300 * 300
    # The bar runs from black to the brightest colour at the right of the maps.
    right = whole[:, int(0.75 * whole.shape[1]) :]
    assert (right == colorize(torch.zeros(1, 1), "positive")[0, 0]).all(-1).any()
    assert sheet([Line([Cell(red), None]), Line([None])]).shape[2] == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid({}), "needs a map"),
        (lambda: grid({"a": []}), "needs a map"),
        (lambda: grid({"a": torch.ones(2, 4, 4), "b": torch.ones(1, 4, 4)}), "2 maps of a, 1 maps of b"),
        (lambda: grid({"a": torch.ones(2, 4, 4)}, PHOTOS[:1]), "1 photographs"),
        (lambda: grid({"a": torch.ones(2, 4, 4)}, titles=["x"]), "1 titles"),
        (lambda: grid({"a": torch.ones(2, 4, 4)}, on_photos=True), "needs photos"),
        (lambda: grid({"a": torch.ones(2, 4, 4)}, one_range="row"), "'map', 'method', 'all'"),
        (lambda: grid({"a": torch.ones(2, 4, 4)}, colors="jet"), "'symmetric', 'positive'"),
        (lambda: grid({"a": torch.ones(4, 4)}), "floating point map"),
        (lambda: sheet([]), "needs a picture"),
        (lambda: sheet([Line([])]), "needs a picture"),
    ],
)
def test_invalid_grids_and_sheets_are_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()
