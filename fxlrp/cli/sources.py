"""The files that ``fxlrp explain`` is asked about: images, patterns, folders, lists of files, arrays."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxlrp.common.atomic_files import unusable
from fxlrp.common.errors import ImageError, InputError

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""The suffixes of files in a folder that are taken as images."""
ARRAYS = (".npy",)
"""The suffixes of arrays: one item as the model takes it, without the batch."""


@dataclass(frozen=True)
class Sources:
    """What is to be explained.

    Attributes:
        files: in the order in which they were named; of many each one once.
        many: whether a folder, a pattern or a list was named: results then go to a folder of their own.
    """

    files: Sequence[Path]
    many: bool


def found(asked: Sequence[Path]) -> Sources:
    """The files that the arguments of a command name.

    Raises:
        ImageError: a folder or a pattern holds no image, or a list or a folder cannot be read.
    """
    files: list[Path] = []
    many = False
    for path in asked:
        if reason := unusable(path):
            raise ImageError(f"{path}: {reason}")
        if path.is_dir():
            inside = sorted(_images_in(path))
            if not inside:
                raise ImageError(f"{path} holds no images{_others_in(path)}")
        elif not path.exists() and glob.has_magic(str(path)):
            inside = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
            if not inside:
                raise ImageError(f"no file fits {path}")
        elif path.suffix.lower() == ".txt":
            inside = _listed(path)
        else:
            files.append(path)
            continue
        many = True
        files += inside
    return Sources(list(dict.fromkeys(files)) if many else files, many)


def read_array(path: Path) -> Tensor:
    """One item as the model takes it: (channels, length), (channels, depth, height, width) or (features,).

    Integers stay integers, as token numbers are; floating point becomes float32.

    Raises:
        InputError: there is no such file, or it holds no array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
        value = torch.from_numpy(np.ascontiguousarray(array))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no array of numbers: {error}") from error
    if not value.dim():
        raise InputError(f"{path} is a single number: give an array as the model takes it, without the batch")
    return value.float() if value.is_floating_point() else value


def _images_in(folder: Path) -> Iterator[Path]:
    """The images in a folder and in those that lie in it or are linked there, without hidden ones.

    Raises:
        ImageError: a folder may not be read; what it holds is not left out unseen.
    """

    def refused(error: OSError) -> None:
        raise ImageError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder that it lies in
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for path in map(Path(place).joinpath, files)
                    if path.suffix.lower() in IMAGES and not path.name.startswith("."))  # fmt: skip


def _others_in(folder: Path) -> str:
    """What files a folder without images holds."""
    suffixes = Counter(path.suffix for path in folder.iterdir() if path.suffix and path.is_file())
    if not suffixes:
        return ""
    ((suffix, count),) = suffixes.most_common(1)
    pattern = f"; a pattern names them: '{folder / f'*{suffix}'}'" if suffix.lower() in ARRAYS else ""
    return f", but {count} {suffix} file{'' if count == 1 else 's'}{pattern}"


def _listed(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"the list {path} cannot be read: {error}") from error
    # Names in a list are relative to it.
    files = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not files:
        raise ImageError(f"the list {path} names no file")
    return files
