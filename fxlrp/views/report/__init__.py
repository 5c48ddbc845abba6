"""One page on how relevance flows: photograph, map, stages, joins, accounts; one HTML file, without a network.

explainer.report(images, "report.html", class_names=names)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.maps.heatmap import heatmap
from fxlrp.views.readable import Readable
from fxlrp.views.report.page import Look, render
from fxlrp.views.report.stages import choose_stages


def write_report(
    explainer: Readable, images: Tensor, path: str | os.PathLike[str], *, target: Any = None,
    class_names: Sequence[str] | None = None, photos: Sequence[Any] | None = None, title: str | None = None,
) -> Path:  # fmt: skip
    """Write the page.

    Args:
        explainer: of a model that takes one batch of pictures.
        images: (batch, 1 or 3, height, width), as the model takes them; a page of more than a dozen is long.
        path: a file name that ends in ``.html``; its folder must be there.
        target: the class to explain, as for an explanation: one per item.
        class_names: the names of the model's classes.
        photos: what to show beside the maps, one per image: tensors (3, height, width) between 0 and 1 or Pillow
            images, of the size of ``images``; ``None``: the images themselves, from their least value (black) to
            their largest (white).
        title: the headline; ``None``: the model's class.

    Returns:
        The path.

    Raises:
        InputError: there is no batch of pictures, photographs do not fit, or the path will not do.
        TargetError: the target is no class of the model, or there are several per item.
        MissingExtraError: jinja2 or matplotlib is not installed (extra ``draw``).
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: a report is a page, so the name must end in .html")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, 3):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"a report is of pictures (batch, 1 or 3, height, width), not {got}")
    if photos is not None and len(photos) != len(images):
        raise InputError(f"{len(photos)} photographs for {len(images)} images: give one per image")
    for package in ("jinja2", "matplotlib", "PIL"):
        require(package, "draw")
    explanation = explainer(images, target=target)
    ledger = explainer.ledger(images, target=explanation.target)
    stages = choose_stages(explainer.model_graph, explainer.shapes, images.shape[-2:])
    relevance = explainer.relevance_of(images, target=explanation.target, nodes=[stage.node for stage in stages])
    look = Look(
        explainer=explainer, images=images.detach().cpu(), photos=photos, explanation=explanation, ledger=ledger,
        heatmaps=heatmap(explanation.relevance).detach().cpu(), stages=stages, relevance=relevance,
        class_names=class_names, title=title,
    )  # fmt: skip
    page = render(look)
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path
