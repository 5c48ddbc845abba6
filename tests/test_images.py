"""Image files are read as RGB pictures or give a clear error; the preprocessing can be undone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fxlrp.errors import ImageError, InputError
from fxlrp.images import as_seen, imagenet_preprocess, read_image, to_input


def photo(width=40, height=30):
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(ramp)


def test_picture_is_read_as_it_was_written(tmp_path):
    photo().save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), np.asarray(photo()))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    name = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    photo().convert(mode).save(name)
    assert read_image(name).mode == "RGB"
    assert read_image(name).size == (40, 30)


def test_orientation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held turned by a quarter.
    photo(40, 30).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png")
    assert read.size == (30, 40)
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(photo(40, 30)), k=-1))


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_values_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[..., 0].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("values", [
    np.array([[-500, 400]], dtype=np.int32), np.array([[0, 70000]], dtype=np.int32), np.array([[0.0, 0.5]], np.float32)
])  # fmt: skip
def test_values_of_which_nobody_can_tell_black_and_white_are_an_error(tmp_path, values):
    """Hounsfield units and floating point would be clipped to a black picture."""
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif has values from .*, and does not say which are black .*\(\.npy\)"):
        read_image(tmp_path / "a.tif")


def test_a_scan_of_twelve_bits_is_read_with_a_warning(tmp_path):
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="no value above 4095: to the model it is nearly black"):
        assert np.asarray(read_image(tmp_path / "a.png"))[..., 0].tolist() == [[0, 16]]


def test_further_pages_of_a_tiff_are_told(tmp_path):
    photo().save(tmp_path / "a.tif", save_all=True, append_images=[photo(), photo()])
    with pytest.warns(UserWarning, match=r"a\.tif has 3 pages: the first one is read"):
        assert read_image(tmp_path / "a.tif").size == (40, 30)


def test_of_other_files_of_numbers_the_error_says_what_to_do(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ImageError, match=r"a\.dcm is not an image that Pillow can read: read it in Python, and"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"there is no file .*a\.png"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("not an image"), "not an image"),
        (lambda path: path.touch(), "not an image"),
    ],
)
def test_path_without_an_image_is_an_error(tmp_path, write, message):
    write(tmp_path / "a.png")
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_truncated_image_is_an_error(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{ending}")
    whole = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"b.{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(tmp_path / f"b.{ending}")


def test_picture_as_seen_is_the_crop_without_the_normalisation():
    picture = photo(300, 260)
    geometry = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    assert torch.allclose(as_seen(picture, imagenet_preprocess()), geometry(picture), atol=1e-6)


def test_border_that_the_preprocessing_adds_is_black():
    seen = as_seen(photo(), transforms.Compose([transforms.ToTensor(), transforms.Pad(3, fill=0.5)]))
    assert seen[:, :3].abs().max() == 0
    assert torch.allclose(seen[:, 3:-3, 3:-3], transforms.ToTensor()(photo()), atol=1e-6)


@pytest.mark.parametrize("wrong", [lambda p: 1, lambda p: torch.zeros(3, 4), lambda p: torch.zeros(3, 4, 4).byte()])
def test_preprocessing_that_returns_no_input_is_an_error(wrong):
    with pytest.raises(InputError, match="preprocessing must return"):
        to_input(photo(), wrong)


def test_preprocessing_that_fails_is_an_error_that_says_why():
    with pytest.raises(InputError, match=r"preprocessing failed on a picture of \(40, 30\)"):
        to_input(photo(), lambda picture: 1 / 0)


def test_model_input_with_one_channel_is_shown_in_grey():
    preprocess = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(0.4, 0.2)])
    seen = as_seen(photo(), preprocess)
    assert seen.shape[0] == 3
    assert torch.equal(seen[0], seen[2])
    torch.testing.assert_close(seen[0], transforms.ToTensor()(photo().convert("L"))[0], rtol=0, atol=1e-6)


def test_model_input_with_two_channels_cannot_be_shown():
    with pytest.raises(InputError, match="2 channels"):
        as_seen(photo(), lambda image: transforms.ToTensor()(image)[:2])
