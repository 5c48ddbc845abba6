"""Pictures as pixels: from Pillow, enlarged, written as PNG.

A picture is a uint8 tensor (height, width, 3).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import FileError, ImageError, InputError


def enlarge(picture: Tensor, shortest: int = 448) -> Tensor:
    """The picture enlarged by the smallest whole factor that makes no side shorter than ``shortest``.

    Args:
        picture: uint8 (height, width, 3).
        shortest: in pixels.
    """
    from PIL import Image

    factor = max(1, -(-shortest // min(picture.shape[:2])))
    image = Image.fromarray(picture.numpy())
    size = (image.width * factor, image.height * factor)
    return from_image(image.resize(size, Image.Resampling.BICUBIC))


def save_png(picture: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write a picture as a file, completely or not at all.

    Args:
        picture: uint8 (height, width, 3).
        path: a file name that ends in ``.png``; its folder is created if needed, and a file
            of this name is replaced.

    Returns:
        The path.

    Raises:
        InputError: this is no picture.
        ImageError: the file cannot be written.
    """
    return _save(picture, Path(path), (".png",), format="PNG")


def save_jpeg(picture: Tensor, path: str | os.PathLike[str], quality: int = 90) -> Path:
    """Write a picture of photographs, such as a gallery: as JPEG it is a fraction of a PNG's size.

    Args:
        picture: uint8 (height, width, 3).
        path: a file name that ends in ``.jpg``; otherwise as for :func:`save_png`.
        quality: of the compression, 1 to 95.

    Returns:
        The path.

    Raises:
        InputError, ImageError: as for :func:`save_png`.
    """
    return _save(picture, Path(path), (".jpg", ".jpeg"), format="JPEG", quality=quality, subsampling=0)


def _save(picture: Tensor, path: Path, suffixes: tuple[str, ...], **options: Any) -> Path:
    from PIL import Image

    if not isinstance(picture, Tensor) or picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[2] != 3:
        raise InputError("a picture is a uint8 tensor (height, width, 3)")
    if path.suffix.lower() not in suffixes:
        raise ImageError(
            f"{path}: pictures are written as {options['format']}, so the name must end in {' or '.join(suffixes)}"
        )
    try:
        with whole(path, makes_folder=True) as beside:
            Image.fromarray(picture.numpy()).save(beside, **options)
    except FileError as error:
        reason = error.__cause__
        raise ImageError(f"{path} cannot be written: {getattr(reason, 'strerror', None) or reason}") from error
    return path


def from_image(image: Any) -> Tensor:
    """The picture of a Pillow image."""
    rgb = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.reshape(rgb.height, rgb.width, 3)


def to_bytes(picture: Tensor) -> Tensor:
    """The picture of colours between 0 and 1, (height, width, 3)."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)
