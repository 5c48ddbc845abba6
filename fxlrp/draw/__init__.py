"""Pictures of an explainer: the forward graph, the rules beside it, and how relevance runs back.

explainer.draw("graph.svg")
explainer.dot                       # DOT text, without Graphviz
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from fxlrp.draw.dot import dot_text
from fxlrp.draw.picture import collapse
from fxlrp.draw.reading import picture_of
from fxlrp.errors import DrawError
from fxlrp.extras import require
from fxlrp.files import whole

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

VIEWS = ("both", "forward", "relevance")
TEXT = ("dot", "gv")
RENDERED = ("svg", "png", "pdf")


def dot_source(explainer: Explainer, view: str = "both", *, depth: int | None = None) -> str:
    """The picture of ``explainer`` as DOT text; needs no other package or program.

    Args:
        explainer: what to draw.
        view: ``"both"``, ``"forward"`` or ``"relevance"``.
        depth: draw modules at this depth closed, as one box each: 1 for the model's own
            children. ``None``: everything open.

    Raises:
        DrawError: there is no such view, or the depth is not positive.
    """
    _check(view, depth)
    picture = picture_of(explainer.emitted, forward=view != "relevance", relevance=view != "forward")
    if depth is not None:
        picture = collapse(picture, depth)
    return dot_text(picture, "fxlrp")


def draw(explainer: Explainer, path: str | os.PathLike[str], view: str = "both", *, depth: int | None = None) -> Path:
    """Write the picture of ``explainer`` to a file and return its path.

    The suffix says what is written: ``.svg``, ``.png`` and ``.pdf`` are rendered by Graphviz,
    ``.dot`` and ``.gv`` hold the DOT text and need nothing. A file is written whole or not at all.

    Args:
        explainer: what to draw.
        path: the file.
        view: as for :func:`dot_source`.
        depth: as for :func:`dot_source`.

    Raises:
        DrawError: suffix, folder, view or depth will not do, or Graphviz is missing or fails.
        MissingExtraError: the Python package ``graphviz`` is not installed.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in TEXT + RENDERED:
        raise DrawError(f"cannot draw {path}: choose a suffix of {', '.join(f'.{k}' for k in RENDERED + TEXT)}")
    if not path.parent.is_dir():
        raise DrawError(f"cannot draw {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise DrawError(f"cannot draw {path}: it is a folder")
    text = dot_source(explainer, view, depth=depth)
    content = text.encode() if kind in TEXT else _render(text, kind)
    with whole(path) as beside:
        beside.write_bytes(content)
    return path


def _check(view: str, depth: int | None) -> None:
    if view not in VIEWS:
        raise DrawError(f"view={view!r}: choose one of {', '.join(map(repr, VIEWS))}")
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise DrawError(f"depth={depth!r}: give a whole number, 1 for the model's own modules, or None for everything")


def _render(text: str, kind: str) -> bytes:
    graphviz = require("graphviz", "draw")
    try:
        rendered: bytes = graphviz.Source(text).pipe(format=kind, quiet=True)
    except graphviz.ExecutableNotFound as error:
        raise DrawError(
            f"a .{kind} needs Graphviz's program dot, which is not on the PATH: install Graphviz "
            "(apt-get install graphviz, brew install graphviz, conda install graphviz, or graphviz.org/download). "
            "A .dot file, explainer.dot and fxlrp.draw.dot_source need nothing."
        ) from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        raise DrawError(f"Graphviz could not render the picture as {kind}: {said or error}") from error
    return rendered
