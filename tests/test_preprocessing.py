"""How inputs are made: what a model says, what the user says, what is guessed; and where that is in the photograph."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

from fxlrp.errors import InputError, WeightsError
from fxlrp.geometry import Box, Tiling, box_of, placed, window_input
from fxlrp.loading import preprocessing
from fxlrp.loading.preprocessing import IMAGENET, Asked, InputFormat, of_transforms, read_classes


def photo(width, height):
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_format_of_torchvision_is_that_of_its_weights():
    weights = models.ConvNeXt_Tiny_Weights.DEFAULT.transforms()
    own = preprocessing.of_torchvision(weights)
    picture = photo(300, 260)
    assert torch.equal(own.preprocess()(picture), weights(picture))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_the_format_of_timm_is_that_of_its_configuration(name):
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    theirs = timm.data.create_transform(**config, is_training=False)
    picture = photo(300, 260)
    assert torch.equal(preprocessing.of_timm(config).preprocess()(picture), theirs(picture))
    assert torch.equal(of_transforms(theirs).preprocess()(picture), theirs(picture))


def test_transforms_are_read_only_where_they_are_a_format():
    steps = transforms.Resize(40, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop((32, 30))
    rest = transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize([0.4], [0.2])
    composed = transforms.Compose([*steps, *rest])
    assert of_transforms(composed) == InputFormat((32, 30), 40, (0.4,), (0.2,), 1, "bicubic")
    plain = of_transforms(transforms.Compose([*steps, transforms.ToTensor()]))
    assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))
    for other in (transforms.Pad(3), transforms.Resize((30, 30)), transforms.RandomRotation(5)):
        assert of_transforms(transforms.Compose([*steps, other, transforms.ToTensor()])) is None
    assert of_transforms(transforms.ToTensor()) is None
    assert of_transforms(lambda picture: picture) is None


def test_what_the_user_says_replaces_what_the_model_says():
    assert Asked().applied(IMAGENET) == IMAGENET
    assert Asked(size=96).applied(IMAGENET).size == (96, 96)
    assert Asked(size=96).applied(IMAGENET).resize is None
    one = Asked(channels=1).applied(IMAGENET)
    assert (one.mean, one.std, one.channels) == ((0,), (1,), 1)
    assert Asked(mean=(0.5,), std=(0.25,)).applied(IMAGENET).mean == (0.5, 0.5, 0.5)
    for wrong in (Asked(mean=(0.1, 0.2)), Asked(std=(0.0, 1, 1)), Asked(channels=4), Asked(size=0)):
        with pytest.raises(InputError):
            wrong.applied(IMAGENET)


def test_a_guess_looks_at_the_first_convolution():
    assert preprocessing.guessed(nn.Conv2d(3, 4, 3)) == IMAGENET
    assert preprocessing.guessed(nn.Sequential(nn.Identity(), nn.Conv2d(1, 4, 3))).channels == 1


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", "cat\n\n dog \n"), ("a.json", '["cat", "dog"]'), ("a.json", '{"1": "dog", "0": "cat"}'),
    ("a.json", '[["n01", "cat"], ["n02", "dog"]]'), ("a.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"]}'),
])  # fmt: skip
def test_classes_are_read_in_the_usual_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == ["cat", "dog"]


@pytest.mark.parametrize(("name", "text"), [("a.txt", "\n"), ("a.json", "{"), ("a.json", '"cat"'), ("a.json", "[]")])
def test_other_files_of_classes_are_an_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match="--classes"):
        read_classes(tmp_path / name)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_classes(tmp_path / "gone.txt")


# Where it is in the photograph -------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (1000, 250), (224, 224), (101, 99)])
def test_the_box_of_a_crop_is_found(width, height):
    box = box_of((width, height), InputFormat((64, 64), 80).preprocess())
    side, short = 64 / 80 * min(width, height), min(width, height)
    expected = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    # To a pixel of what the model sees.
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx(expected, abs=1.2 * short / 80)


def test_the_box_of_a_squeezed_picture_is_all_of_it_and_of_a_padded_one_larger():
    squeezed = transforms.Compose([transforms.Resize((48, 64)), transforms.ToTensor()])
    box = box_of((300, 100), squeezed)
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0, 0, 300, 100), abs=3)
    padded = transforms.Compose([transforms.Resize(50), transforms.Pad(10), transforms.ToTensor()])
    box = box_of((100, 100), padded)
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((-20, -20, 120, 120), abs=2)


@pytest.mark.parametrize("change", [transforms.RandomHorizontalFlip(1), transforms.Lambda(lambda p: p.rotate(90))])
def test_what_turns_the_picture_has_no_box(change):
    with pytest.raises(InputError, match="no place in photographs"):
        box_of((100, 90), transforms.Compose([transforms.Resize(40), change, transforms.ToTensor()]))


def test_a_placed_map_keeps_its_sum_and_lies_in_the_box():
    torch.manual_seed(0)
    heat = torch.randn(16, 16) + 0.2
    whole = placed(heat, Box(30, 10, 70, 50), (100, 60))
    assert whole.shape == (60, 100)
    torch.testing.assert_close(whole.double().sum(), heat.double().sum(), rtol=1e-5, atol=0)
    whole[10:50, 30:70] = 0
    assert not whole.any()
    beyond = placed(heat, Box(-10, -10, 30, 30), (100, 60))
    torch.testing.assert_close(beyond.double().sum(), heat.double().sum(), rtol=1e-5, atol=0)


def test_a_placed_map_whose_signs_nearly_cancel_keeps_them():
    torch.manual_seed(0)
    heat = torch.randn(16, 16)
    heat -= heat.mean() - 1e-5
    for box in (Box(30, 10, 70, 50), Box(-10, -10, 30, 30)):
        whole = placed(heat, box, (100, 60))
        torch.testing.assert_close(whole.double().sum(), heat.double().sum(), rtol=0, atol=1e-4)
        left, top, right, bottom = box.rounded
        large = torch.nn.functional.interpolate(heat[None, None], (bottom - top, right - left), mode="bilinear")[0, 0]
        inside = whole[max(0, top) : bottom, max(0, left) : right]
        both = torch.stack([inside.flatten(), large[-inside.shape[0] :, -inside.shape[1] :].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (95, 93), (40, 40), (30, 50)])
def test_windows_cover_the_photograph_each_half_over_the_next(size):
    boxes = Tiling(size, Box(10, 10, 50, 50)).windows
    covered = np.zeros((size[1], size[0]), dtype=int)
    for box in boxes:
        left, top, right, bottom = box.rounded
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    assert len(boxes) == np.prod([1 + -(-max(0, length - 40) // 20) for length in size])


@pytest.mark.parametrize("size", [(100, 40), (95, 93), (40, 40)])
def test_joined_windows_add_up_to_the_sum_over_all_of_them(size):
    torch.manual_seed(0)
    tiling = Tiling(size, Box(10, 10, 50, 50))
    maps = torch.randn(len(tiling.windows), 16, 16) + 0.1
    maps[0, :, -1] = 9  # at the edge, where the window counts least
    for number, heat in enumerate(maps):
        tiling.add(number, heat)
    torch.testing.assert_close(tiling.joined.double().sum(), maps.double().sum(), rtol=1e-4, atol=0)
    alone = Tiling(size, Box(10, 10, 50, 50))
    alone.add(0, maps[0])  # relevance for stays for, and against against, also where one window alone has any
    assert torch.equal(alone.joined.sign(), placed(maps[0], alone.windows[0], size).sign())


def test_where_windows_meet_there_is_no_seam():
    tiling = Tiling((130, 95), Box(10, 10, 50, 50))
    for number, window in enumerate(tiling.windows):  # every other window finds three times as much
        tiling.add(number, torch.full((16, 16), 3.0 if window.left % 40 else 1.0))
    joined = tiling.joined
    assert joined.diff(dim=1).abs().max() < 0.12 * joined.max()
    assert joined.diff(dim=0).abs().max() < 0.12 * joined.max()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_is_made_as_the_model_makes_its_input(channels):
    form = Asked(channels=channels).applied(InputFormat((40, 40), 40, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)))
    picture = photo(40, 40)
    expected = form.preprocess()(picture)
    torch.testing.assert_close(window_input(picture, Box(0, 0, 40, 40), form.preprocess()), expected, rtol=0, atol=1e-5)
