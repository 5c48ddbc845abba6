"""Heatmaps in colours: zero is the middle, the photograph is visible, files are complete or absent."""

import os
import stat
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fxlrp.errors import ImageError, InputError, MissingExtraError
from fxlrp.render import color_range, colorize, enlarge, fitting_colors, overlay, save_jpeg, save_png, scaled, to_photo

NAN, INF = float("nan"), float("inf")


def ramp(low=-1.0, high=1.0, size=21):
    return torch.linspace(low, high, size).expand(size, size).contiguous()


def test_zero_is_always_the_middle_of_symmetric_colours():
    colours = colorize(torch.tensor([[-1.0, 0.0, 10.0]]), "symmetric", percentile=100)
    assert colours[0, 1].tolist() == colorize(torch.zeros(1, 1), "symmetric")[0, 0].tolist()
    assert colours[0, 1].min() > 230  # White.
    assert colours[0, 0, 2] > colours[0, 0, 0]  # Negative is bluish,
    assert colours[0, 2, 0] > colours[0, 2, 2]  # positive is red.


def test_positive_colours_show_negative_relevance_as_zero():
    values = scaled(torch.tensor([[-5.0, 0.0, 1.0, 2.0]]), "positive", percentile=100)
    assert values.tolist() == [[0, 0, 0.5, 1]]


def test_positive_colours_go_from_white_to_dark_red():
    colours = colorize(ramp(0, 1), "positive")[0].double()
    brightness = colours.mean(-1)
    assert (brightness.diff() <= 1).all()
    assert brightness[0] > 240
    assert brightness[-1] < brightness[0] - 100
    assert colours[-1].argmax() == 0


def test_a_few_strong_pixels_do_not_darken_the_rest():
    heatmap = torch.ones(20, 20)
    heatmap[0, 0] = 1e6
    assert scaled(heatmap, percentile=99.5).min() == 1
    assert scaled(heatmap, percentile=100).min() < 1e-5


def test_single_pixel_of_relevance_is_visible():
    heatmap = torch.zeros(100, 100)
    heatmap[50, 50] = 2
    assert scaled(heatmap, percentile=99).max() == 1


def test_maps_can_share_one_range():
    weak, strong = torch.full((4, 4), 1.0), torch.full((4, 4), -4.0)
    limit = color_range([weak, strong], "symmetric", 100)
    assert limit == 4
    assert (scaled(weak, limit=limit) == 0.25).all()
    assert (scaled(strong, limit=limit) == -1).all()
    assert color_range([weak, strong], "positive", 100) == 1
    assert color_range([0 * weak], "positive") == color_range([]) == 0
    assert (scaled(0 * weak, limit=0) == 0).all()


@pytest.mark.parametrize("colors", ["symmetric", "positive"])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-300, 1e300])
def test_constant_map_has_one_colour(colors, value):
    colours = colorize(torch.full((4, 5), value, dtype=torch.float64), colors)
    assert colours.shape == (4, 5, 3)
    assert (colours == colours[0, 0]).all()


@pytest.mark.parametrize("colors", ["symmetric", "positive"])
def test_values_that_are_not_finite_are_grey_and_change_no_others(colors):
    heatmap = ramp()
    holed = heatmap.clone()
    holed[3, 4], holed[5, 6], holed[7, 8] = NAN, INF, -INF
    plain, colours = colorize(heatmap, colors, 100), colorize(holed, colors, 100)
    bad = ~torch.isfinite(holed)
    assert (colours[bad] == 128).all()
    assert torch.equal(colours[~bad], plain[~bad])


def test_map_of_nan_is_grey():
    assert (colorize(torch.full((3, 3), NAN)) == 128).all()
    assert fitting_colors(torch.full((3, 3), NAN)) == "positive"


@pytest.mark.parametrize(("low", "colors"), [(0.0, "positive"), (-1e-6, "positive"), (-0.5, "symmetric")])
def test_fitting_colours_depend_on_negative_relevance(low, colors):
    assert fitting_colors(ramp(low, 1)) == colors


def test_half_precision_maps_are_shown():
    assert colorize(ramp().half()).shape == (21, 21, 3)
    assert colorize(ramp().bfloat16()).shape == (21, 21, 3)


def test_overlay_shows_the_photograph_where_there_is_no_relevance():
    photo = torch.rand(3, 16, 16)
    heatmap = torch.zeros(16, 16)
    heatmap[:, 8:] = 1
    picture = overlay(photo, heatmap, "positive", smooth=0).double()
    grey = (photo * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    without, under = (
        np.corrcoef(grey[:, part].flatten(), picture[:, part].mean(-1).flatten())[0, 1]
        for part in (slice(0, 8), slice(8, 16))
    )
    assert without > 0.95
    assert under > 0.9
    # Under the strongest relevance a tenth of the photograph still shows.
    contrast = picture[:, :8].std((0, 1)), picture[:, 8:].std((0, 1))
    assert torch.allclose(contrast[1] / contrast[0], torch.tensor(0.1, dtype=torch.float64), atol=0.05)


def test_strength_is_the_opacity_of_the_overlay():
    photo, heatmap = torch.rand(3, 8, 8), torch.ones(8, 8)
    assert torch.equal(overlay(photo, heatmap, strength=1), colorize(heatmap))
    assert torch.equal(overlay(photo, heatmap, strength=0), overlay(photo, 0 * heatmap))


def test_smoothing_removes_alternation_and_does_not_spread_nan():
    rows = torch.arange(32).view(-1, 1)
    checks = ((rows + rows.T) % 2).float()
    photo = torch.zeros(3, 32, 32)
    assert overlay(photo, checks, "positive", smooth=0).double().std() > 30
    assert overlay(photo, checks, "positive", smooth=2).double()[..., 0].std() < 5
    checks[10, 10] = NAN
    blurred = overlay(photo, checks, "positive", smooth=2)
    assert blurred[10, 10].tolist() == [124, 124, 124]  # Nine tenths of grey on what black becomes.
    assert (blurred[20:, 20:].double()[..., 0].std()) < 5


def test_photograph_may_be_a_pillow_image():
    photo = torch.rand(3, 8, 9)
    pillow = Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy())
    heatmap = torch.rand(8, 9)
    assert (overlay(photo, heatmap).int() - overlay(pillow, heatmap).int()).abs().max() <= 1
    assert torch.equal(to_photo(pillow), torch.from_numpy(np.array(pillow)))


def test_pictures_are_enlarged_by_whole_factors():
    assert enlarge(torch.zeros(224, 300, 3, dtype=torch.uint8), 448).shape == (448, 600, 3)
    assert enlarge(torch.zeros(500, 600, 3, dtype=torch.uint8), 448).shape == (500, 600, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaled(torch.zeros(1, 4, 4)), r"one floating point map .*\(1, 4, 4\)"),
        (lambda: scaled(torch.zeros(4, 4, dtype=torch.long)), "floating point"),
        (lambda: scaled(torch.zeros(0, 4)), "one floating point map"),
        (lambda: scaled([[1.0]]), "not list"),
        (lambda: scaled(torch.zeros(4, 4), "jet"), "'symmetric', 'positive'"),
        (lambda: scaled(torch.zeros(4, 4), percentile=0), "percentile"),
        (lambda: scaled(torch.zeros(4, 4), percentile=101), "percentile"),
        (lambda: scaled(torch.zeros(4, 4), limit=-1), "limit"),
        (lambda: overlay(torch.zeros(3, 4, 5), torch.zeros(4, 4)), r"\(4, 5\) and the map \(4, 4\)"),
        (lambda: overlay(torch.zeros(1, 4, 4), torch.zeros(4, 4)), r"\(3, height, width\)"),
        (lambda: overlay("photo.png", torch.zeros(4, 4)), "not str"),
        (lambda: overlay(torch.zeros(3, 4, 4), torch.zeros(4, 4), strength=2), "strength"),
        (lambda: overlay(torch.zeros(3, 4, 4), torch.zeros(4, 4), smooth=-1), "smooth"),
        (lambda: overlay(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)), "one floating point map"),
        (lambda: save_png(torch.zeros(4, 4, 3), "a.png"), "uint8"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxlrp\[draw\]'"):
        colorize(torch.zeros(4, 4))


def picture(value):
    return torch.full((6, 8, 3), value, dtype=torch.uint8)


def test_picture_is_written_unchanged_into_a_new_folder(tmp_path):
    place = save_png(picture(7), tmp_path / "new" / "er" / "a.png")
    assert np.array_equal(np.asarray(Image.open(place)), picture(7).numpy())


def test_picture_replaces_an_older_one_with_the_usual_permissions(tmp_path):
    save_png(picture(1), tmp_path / "a.png")
    save_png(picture(2), tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png")).max() == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o666 & ~mask


def test_failed_write_keeps_the_older_picture_and_leaves_no_part(tmp_path, monkeypatch):
    save_png(picture(1), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def half(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(ImageError, match="cannot be written: No space left"):
        save_png(picture(2), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_gallery_may_be_written_as_jpeg(tmp_path):
    flat = torch.full((16, 16, 3), 120, dtype=torch.uint8)
    path = save_jpeg(flat, tmp_path / "a.jpg")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (16, 16))
        assert np.abs(np.asarray(image).astype(int) - 120).max() <= 1
    with pytest.raises(ImageError, match=r"as JPEG, so the name must end in \.jpg or \.jpeg"):
        save_jpeg(flat, tmp_path / "a.png")


def test_other_formats_and_impossible_folders_are_errors(tmp_path):
    with pytest.raises(ImageError, match=r"end in \.png"):
        save_png(picture(1), tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot be written"):
        save_png(picture(1), tmp_path / "file" / "a.png")
