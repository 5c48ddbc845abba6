"""The paths of the pictures that ``fxlrp explain`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fxlrp.common.errors import ImageError

# Formats that are not written; without this list ``--out map.jpg`` would create a folder of this name.
_OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pdf", ".svg")


def picture_paths(images: Sequence[Path], out: Path | None) -> list[Path]:
    """The path of each image's picture: all different, and none that of an image.

    Args:
        images: the image files.
        out: a name that ends in ``.png`` is the picture of the only image; any other name is a folder, where
            the picture of ``cat.jpg`` is ``cat_relevance.png``; ``None``: the current folder. Pictures of
            earlier runs are replaced.

    Raises:
        ImageError: ``out`` cannot be such a file or folder.
    """
    used = {path_key(path) for path in images}
    if out is not None and out.suffix.lower() == ".png" and not out.is_dir():
        if len(images) > 1:
            raise ImageError(f"--out {out} is one file, and there are {len(images)} images: name a folder")
        if path_key(out) in used:
            raise ImageError(f"--out {out} would overwrite the image itself")
        return [out]
    folder = Path() if out is None else out
    if folder.suffix.lower() in _OTHER_PICTURES and not folder.is_dir():
        raise ImageError(f"--out {out}: pictures are written as PNG; name a .png file or a folder")
    if any(parent.exists() and not parent.is_dir() for parent in (folder, *folder.parents)):
        raise ImageError(f"--out {out}: a file is in the place of the folder")
    return [unused_path(folder, f"{path.stem}_relevance", used) for path in images]


def unused_path(folder: Path, stem: str, used: set[str]) -> Path:
    """A path for a picture of this name, with a number if the name is used; it is added to ``used``."""
    path, number = folder / f"{stem}.png", 2
    while path_key(path) in used:
        path, number = folder / f"{stem}-{number}.png", number + 1
    used.add(path_key(path))
    return path


def path_key(path: Path) -> str:
    """A text that is the same for all paths of one file."""
    # Some file systems ignore the difference between upper and lower case.
    return str(path.resolve()).casefold()
