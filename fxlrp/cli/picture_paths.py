"""Where pictures go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fxlrp.common.errors import ImageError

# Endings of pictures that are not written, so that ``--out map.jpg`` does not make a folder of this name.
_OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pdf", ".svg")


def picture_paths(images: Sequence[Path], out: Path | None) -> list[Path]:
    """Where each image's picture goes: no two to the same place, and none onto an image given.

    Args:
        images: the image files.
        out: a name that ends in ``.png`` is the file itself, for one image; any other is a
            folder, where ``cat.jpg`` becomes ``cat_relevance.png``; ``None``: the current folder.
            Files from earlier runs are replaced.

    Raises:
        ImageError: ``out`` cannot be what it would have to be.
    """
    taken = {identity(path) for path in images}
    if out is not None and out.suffix.lower() == ".png" and not out.is_dir():
        if len(images) > 1:
            raise ImageError(f"--out {out} is one file, and there are {len(images)} images: name a folder")
        if identity(out) in taken:
            raise ImageError(f"--out {out} would overwrite the image itself")
        return [out]
    folder = Path() if out is None else out
    if folder.suffix.lower() in _OTHER_PICTURES and not folder.is_dir():
        raise ImageError(f"--out {out}: pictures are written as PNG; name a .png file or a folder")
    if any(parent.exists() and not parent.is_dir() for parent in (folder, *folder.parents)):
        raise ImageError(f"--out {out}: a file is in the place of the folder")
    return [free_place(folder, f"{path.stem}_relevance", taken) for path in images]


def free_place(folder: Path, stem: str, taken: set[str]) -> Path:
    """A place for a picture of this name, with a number where it is taken; it is taken from then on."""
    place, number = folder / f"{stem}.png", 2
    while identity(place) in taken:
        place, number = folder / f"{stem}-{number}.png", number + 1
    taken.add(identity(place))
    return place


def identity(path: Path) -> str:
    """Equal for paths of one file."""
    # Some file systems do not tell upper case from lower.
    return str(path.resolve()).casefold()
