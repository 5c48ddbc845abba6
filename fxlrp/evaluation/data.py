"""Images and passages to evaluate on: which ones there are, with what labels, and which of them are chosen."""

from __future__ import annotations

import csv
import itertools
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fxlrp.common.errors import DataError
from fxlrp.evaluation.tokens.subject import Passage
from fxlrp.loading.images import read_image
from fxlrp.loading.models import imported_result

T = TypeVar("T")

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff", ".gif"))


@dataclass(frozen=True)
class Sample:
    """One image, text or other passage of a data set.

    Attributes:
        index: its number in the whole data set, by which its results are known.
        name: its file within the data set, or its number; a text itself.
        label: its class; ``None``: not known.
        read: gives the picture, the text or the passage.
        subject: the name of the subject that it is for, where a configuration has several.
    """

    index: int
    name: str
    label: int | None
    read: Callable[[], Any] = field(repr=False, compare=False)
    subject: str = ""


def image_folder(path: Path, labels: str = "folders") -> list[Sample]:
    """A folder of images, in the order of their names.

    Args:
        path: the folder.
        labels: ``"folders"``: there is one folder per class, sorted names in the order of the classes; ``"order"``:
            one image per class, sorted names in that order; ``"none"``: there are no labels; else the name of a CSV
            file in the folder, with lines ``file,label``.

    Raises:
        DataError: there is no such folder, or it is not laid out like that.
    """
    _check_folder(path)
    if labels == "folders":
        classes = _folders(path)
        if not classes:
            raise DataError(f'{path} has no folder for each class; where there are no labels, write labels = "none"')
        return _samples(path, ((file, label) for label, each in enumerate(classes) for file in _files(each)))
    if labels in ("order", "none"):
        return _samples(path, ((file, i if labels == "order" else None) for i, file in enumerate(_files(path))))
    return _samples(path, _listed(path, labels))


def imagenet(path: Path, split: str = "val") -> list[Sample]:
    """ImageNet as torchvision lays it out: ``val/n01440764/*.JPEG``, a folder for each of the 1,000 classes.

    Raises:
        DataError: there is no such split, or not all of its classes.
    """
    root = path / split
    _check_folder(root)
    count = len(_folders(root))
    if count != 1000:
        raise DataError(f"{root} has folders for {count} classes, not for 1,000: labels would be wrong")
    return image_folder(root)


def cub(path: Path, split: str = "test", seed: int = 0, validation: int = 600) -> list[Sample]:
    """CUB-200-2011 (Wah et al., 2011) in its own layout, by its official split.

    Args:
        path: the folder with ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``images/``.
        split: ``"test"`` (5,794 images), ``"train"`` (5,394) or ``"validation"`` (600 of the official training
            images, the same number of each class as far as it goes).
        seed: which ones are for validation.
        validation: how many.

    Raises:
        DataError: there is no such split, or the folder is not laid out like that.
    """
    if split not in ("test", "train", "validation"):
        raise DataError(f"CUB has no split {split!r}: choose test, train or validation")
    _check_folder(path)
    files = _table(path / "images.txt")
    labels = {key: int(label) - 1 for key, label in _table(path / "image_class_labels.txt").items()}
    training = {key: flag == "1" for key, flag in _table(path / "train_test_split.txt").items()}
    if not files.keys() == labels.keys() == training.keys():
        raise DataError(f"{path}: images.txt, image_class_labels.txt and train_test_split.txt name different images")
    samples = {
        key: Sample(index, file, labels[key], partial(read_image, path / "images" / file))
        for index, (key, file) in enumerate(files.items())
    }
    if split == "test":
        return [sample for key, sample in samples.items() if not training[key]]
    rest = [sample for key, sample in samples.items() if training[key]]
    if len(rest) <= validation:
        raise DataError(f"{path} has {len(rest)} training images, which leaves none beside {validation} for validation")
    held_out = {sample.index for sample in choose(rest, count=validation, seed=seed)}
    return [sample for sample in rest if (sample.index in held_out) == (split == "validation")]


def arrays(path: Path) -> list[Sample]:
    """An npz file with ``images`` (count, height, width, 3), uint8, and, if they are known, ``labels`` (count,).

    Raises:
        DataError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
            labels = file["labels"] if "labels" in file.files else None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an npz file with 'images': {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path}: images must be uint8 (count, height, width, 3), not {images.dtype} {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise DataError(f"{path}: there are {len(images)} images and labels of shape {labels.shape}")
    return [
        Sample(i, str(i), None if labels is None else int(labels[i]), partial(Image.fromarray, images[i]))
        for i in range(len(images))
    ]


def texts(path: Path) -> list[Sample]:
    """A file with a text in each line; lines without one are left out.

    Raises:
        DataError: it cannot be read, or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as texts: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path} holds no text")
    return [Sample(index, line, None, partial(str, line)) for index, line in enumerate(found)]


def _given(target: str, kind: type[T]) -> list[T]:
    """What a function gives, if it is a list of this kind, of one at least."""
    found = imported_result(target)
    if not isinstance(found, list) or not found or not all(isinstance(each, kind) for each in found):
        raise DataError(f"{target} must give a list of {kind.__name__}s, of one at least")
    return found


def passages(target: str) -> list[Sample]:
    """The passages that a function gives, ``package.module:callable``; it takes no arguments.

    Raises:
        WeightsError: there is no such function, or it fails.
        DataError: it gives something else.
    """
    found = _given(target, Passage)
    return [Sample(index, str(index), each.label, partial(_same, each)) for index, each in enumerate(found)]


def own(target: str) -> list[Sample]:
    """The images that a function gives, ``package.module:callable``; it takes no arguments.

    Raises:
        WeightsError: there is no such function, or it fails.
        DataError: it gives something else.
    """
    samples = _given(target, Sample)
    if len({sample.index for sample in samples}) != len(samples):
        raise DataError(f"{target} gives two Samples the same index")
    return samples


# Which of them ------------------------------------------------------------------------------------


def choose(
    samples: Sequence[Sample], *, count: int | None = None, per_class: int | None = None, seed: int = 0
) -> list[Sample]:
    """Some of the samples, of each class the same number, in the order in which they are.

    Args:
        samples: to choose among.
        count: how many in all. Where the number of classes does not divide it, some classes, by seed, have one more.
        per_class: how many of each class, in place of ``count``.
        seed: of the choice.

    Raises:
        DataError: there are not so many.
    """
    if count is not None and per_class is not None:
        raise DataError("give the number of images in all (count) or of each class (per_class), not both")
    if count is None and per_class is None:
        return list(samples)
    order = random.Random(seed)
    by_class = _by_class(samples)
    classes = list(by_class)
    if per_class is not None:
        wanted = dict.fromkeys(classes, per_class)
    else:
        assert count is not None
        more = order.sample(classes, count % len(classes)) if classes else []
        wanted = {label: count // len(classes) + (label in more) for label in classes}
    chosen: set[int] = set()
    for label, members in by_class.items():
        if len(members) < wanted[label]:
            what = "images" if label is None else f"images of class {label}"
            raise DataError(f"{wanted[label]} {what} are wanted, and there are {len(members)}")
        chosen.update(sample.index for sample in order.sample(members, wanted[label]))
    if not chosen:
        raise DataError("no image is left to evaluate on")
    return [sample for sample in samples if sample.index in chosen]


def half(samples: Sequence[Sample], part: str, seed: int = 0) -> list[Sample]:
    """One of two halves of each class: ``"development"``, to choose by, or ``"confirmation"``, to report.

    Raises:
        DataError: there is no such part.
    """
    if part not in ("development", "confirmation"):
        raise DataError(f"part = {part!r}: choose development or confirmation")
    order = random.Random(seed)
    first: set[int] = set()
    extra = True  # classes of an odd number of images give the one that is left over in turn
    for members in _by_class(samples).values():
        size = (len(members) + extra) // 2
        extra ^= len(members) % 2 == 1
        first.update(sample.index for sample in order.sample(members, size))
    return [sample for sample in samples if (sample.index in first) == (part == "development")]


def _by_class(samples: Sequence[Sample]) -> dict[int | None, list[Sample]]:
    """The samples of each class, in the order of the classes; those without a label come first."""
    ordered = sorted(samples, key=lambda sample: -1 if sample.label is None else sample.label)
    return {label: list(members) for label, members in itertools.groupby(ordered, lambda sample: sample.label)}


def _same(passage: Passage) -> Passage:
    return passage


def _samples(root: Path, files: Iterable[tuple[Path, int | None]]) -> list[Sample]:
    samples = [
        Sample(index, file.relative_to(root).as_posix(), label, partial(read_image, file))
        for index, (file, label) in enumerate(files)
    ]
    if not samples:
        raise DataError(f"{root} holds no images")
    return samples


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")


def _folders(path: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())


def _files(path: Path) -> list[Path]:
    files = (Path(entry.path) for entry in os.scandir(path) if entry.is_file())
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def _listed(path: Path, name: str) -> list[tuple[Path, int | None]]:
    file = path / name
    if not file.is_file():
        raise DataError(f'labels = "{name}" is none of folders, order, none, and no file in {path}')
    files: list[tuple[Path, int | None]] = []
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
            if len(row) != 2 or not row[1].strip().isdigit():
                raise DataError(f"{file}, line {number}: expected 'file,label', not {','.join(row)!r}")
            files.append((path / row[0].strip(), int(row[1])))
    return files


def _table(file: Path) -> dict[str, str]:
    """The lines ``key value`` of one of CUB's files."""
    try:
        lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if not lines or any(len(line) != 2 for line in lines):
        raise DataError(f"{file} is not made of lines 'number value', as those of CUB-200-2011 are")
    return {key: value.strip() for key, value in lines}
