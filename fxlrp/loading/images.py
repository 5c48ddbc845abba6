"""Image files: read as RGB pictures, converted to model inputs, and shown as the model sees them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms

from fxlrp.common.atomic_files import unusable
from fxlrp.common.errors import ImageError, InputError

Preprocess = Callable[[Image.Image], Tensor]
"""From an RGB picture to a model's input, (channels, height, width), without the batch."""

_DATA = (".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".npz", ".h5", ".hdf5", ".mat", ".pt")
"""Files of numbers that are often taken for images."""
_ARRAY = "read it in Python, and save it as the model takes it, without the batch, as an array (.npy)"
_WHITE, _TWELVE_BITS = 2**16 - 1, 2**12

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as an upright RGB picture.

    The orientation in the EXIF data is applied. Transparent pixels are blended with white. 16-bit grey values are
    scaled to 8 bits. Of an animation, the first frame is read.

    Warns:
        UserWarning: of several pages of a TIFF the first is read, or 16-bit values are those of a 12-bit scan.

    Raises:
        ImageError: there is no such file, or it is not an image, or an incomplete one, or nobody can tell which of its
            values are black and white.
    """
    path = Path(path)
    if reason := unusable(path):
        raise ImageError(f"{path}: {reason}")
    if path.is_dir():
        raise ImageError(f"{path} is a folder: give image files")
    if not path.exists():
        raise ImageError(f"there is no file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                warnings.warn(f"{path} has {image.n_frames} pages: the first one is read", stacklevel=1)
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        way_out = f": {_ARRAY}" if path.name.lower().endswith(_DATA) else ""
        raise ImageError(f"{path} is not an image that Pillow can read{way_out}") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read: permission denied") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large: {error}") from error
    # Pillow's decoders raise many types for damaged files, SyntaxError and struct.error among them.
    except Exception as error:
        raise ImageError(f"{path} is a damaged or truncated image: {error}") from error


def imagenet_preprocess(size: int = 224, resize: int = 256) -> Preprocess:
    """The usual preprocessing of ImageNet models: resize the short side, crop the middle, normalise."""
    steps = [
        transforms.Resize(resize),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    composed: Preprocess = transforms.Compose(steps)
    return composed


def to_input(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """A model's input for one picture.

    Returns:
        (channels, height, width), floating point.

    Raises:
        InputError: the preprocessing fails, or it returns something else.
    """
    try:
        value = preprocess(image)
    except Exception as error:
        raise InputError(f"the model's preprocessing failed on a picture of {image.size}: {error}") from error
    if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"preprocessing must return a floating point tensor (channels, height, width), not {got}")
    return value


def as_seen(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """The picture as the model sees it: resized and cropped, with the normalisation undone.

    It matches a heatmap pixel by pixel. The normalisation is measured: a black and a white picture
    are preprocessed in the same way. This works for any preprocessing that scales and shifts each
    value on its own. Values that do not depend on the picture, such as a border that the
    preprocessing adds, are black.

    Returns:
        (3, height, width), between 0 and 1; what the model gets in grey is grey.

    Raises:
        InputError: as :func:`to_input`, or the model's input has neither one nor three channels.
    """
    value = to_input(image, preprocess)
    if value.shape[0] not in (1, 3):
        raise InputError(f"a model input with {value.shape[0]} channels cannot be shown as a picture")
    black, span = normalisation(image.size, preprocess)
    fixed = span == 0
    return torch.where(fixed, 0, (value - black) / torch.where(fixed, 1, span)).clamp(0, 1).expand(3, -1, -1)


def normalisation(size: tuple[int, int], preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """What black becomes, and the difference to what white becomes: each (channels, height, width).

    Args:
        size: width and height of the picture.
        preprocess: from an RGB picture to the model's input.
    """
    black, white = (to_input(Image.new("RGB", size, colour), preprocess) for colour in ("black", "white"))
    return black, white - black


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips all values at 255.
        values = np.asarray(image).astype(np.float64)
        low, high = values.min(), values.max()
        if image.mode == "F" or low < 0 or high > _WHITE:
            raise ImageError(
                f"has values from {low:g} to {high:g}, and does not say which are black and white: {_ARRAY}"
            )
        if 0 < high < _TWELVE_BITS:
            warnings.warn(
                f"16-bit pictures are taken as 0 for black to {_WHITE} for white, and one here has no value above "
                f"{_TWELVE_BITS - 1}: to the model it is nearly black. Multiply scans of 12 bits by 16, or {_ARRAY}",
                stacklevel=1,  # of many that are alike it is told once
            )
        grey = values / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent)
    return image.convert("RGB")
