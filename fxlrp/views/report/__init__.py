"""One page on how relevance flows: photograph, map, stages, joins, accounts; one HTML file, without a network.

explainer.report(images, "report.html", class_names=names)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.maps.placing import Box
from fxlrp.views.readable import Readable
from fxlrp.views.report.answers import answers_to
from fxlrp.views.report.page import Look, render


def write_report(
    explainer: Readable, images: Tensor, path: str | os.PathLike[str], *, target: Any = None, against: Any = None,
    class_names: Sequence[str] | None = None, photos: Sequence[Any] | None = None,
    boxes: Sequence[Box | None] | None = None, names: Sequence[str] | None = None, title: str | None = None,
) -> Path:  # fmt: skip
    """Write the page.

    Args:
        explainer: of a model that takes one batch of pictures.
        images: (batch, 1 or 3, height, width), as the model takes them; a page of more than a dozen is long.
        path: a file name that ends in ``.html``; its folder must be there.
        target: the classes to explain, as for an explanation: one or several per item; the page has a switch between
            them. ``None``: the three that the model finds most probable.
        against: an int, or several: also explain each class against these.
        class_names: the names of the model's classes.
        photos: what to show below the maps, one per image: tensors (3, height, width) between 0 and 1 or Pillow
            images, of the size of ``images``, or with ``boxes`` of any; ``None``: the images themselves, from their
            least value (black) to their largest (white).
        boxes: where in its photograph the model looks, one per image, of :func:`fxlrp.geometry.box_of`: whole
            photographs are shown, with a frame. ``None`` for a photograph of the size of its image.
        names: what the photographs are called.
        title: the headline; ``None``: the model's class.

    Returns:
        The path.

    Raises:
        InputError: there is no batch of pictures, photographs do not fit, or the path will not do.
        TargetError: a target is no class of the model, or is explained against itself.
        MissingExtraError: jinja2 or matplotlib is not installed (extra ``draw``).
    """
    path = checked_path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: a report is a page, so the name must end in .html")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, 3):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"a report is of pictures (batch, 1 or 3, height, width), not {got}")
    for what, given in (("photographs", photos), ("boxes", boxes), ("names", names)):
        if given is not None and len(given) != len(images):
            raise InputError(f"{len(given)} {what} for {len(images)} images: give one per image")
    if boxes is not None and photos is None:
        raise InputError("boxes= says where in its photograph the model looks: give photos= too")
    for package in ("jinja2", "matplotlib", "PIL"):
        require(package, "draw")
    answers, stages = answers_to(explainer, images, target, against, class_names)
    look = Look(explainer, images.detach().cpu(), photos, boxes, names, answers, stages, title)
    page = render(look)
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path
