"""Pictures of an explainer: the forward graph, the rules beside it, and how relevance runs back.

explainer.draw("graph.svg")
explainer.draw("flow.svg", ledger=explainer.ledger(images))    # with the relevance that flows
explainer.dot                       # DOT text, without Graphviz
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import DrawError, MissingExtraError, NotCapturedError
from fxlrp.common.extras import require
from fxlrp.results.ledger import Ledger
from fxlrp.views.draw.dot import dot_text
from fxlrp.views.draw.flow import Flow, mark, weigh
from fxlrp.views.draw.picture import collapse
from fxlrp.views.draw.reading import picture_of
from fxlrp.views.readable import Readable

VIEWS = ("both", "forward", "relevance")
TEXT = ("dot", "gv")
RENDERED = ("svg", "png", "pdf")

_THUMBNAIL = 150
"""The most things in a picture for a notebook, unless the model's own children are more."""


def dot_source(
    explainer: Readable, view: str = "both", *, depth: int | None = None, ledger: Ledger | None = None
) -> str:
    """The picture of ``explainer`` as DOT text; needs no other package or program.

    Args:
        explainer: what to draw.
        view: ``"both"``, ``"forward"`` or ``"relevance"``.
        depth: draw modules at this depth closed, as one box each: 1 for the model's own
            children. ``None``: everything open.
        ledger: of this explainer, from ``explainer.ledger(images)``: arrows are as thick as the share of the
            relevance that flows there, splits tell the shares of skip and residual, and what absorbs is marked;
            means over the batch.

    Raises:
        DrawError: there is no such view, the depth is not positive, or the ledger is of another model or of no
            relevance.
    """
    _check(view, depth)
    graph = explainer.emitted
    picture = picture_of(graph, forward=view != "relevance", relevance=view != "forward", shapes=explainer.shapes)
    flow = None if ledger is None else Flow(ledger, {node.name for node in graph.nodes})
    if flow is not None:
        mark(picture, flow)
    if depth is not None:
        picture = collapse(picture, depth)
    if flow is not None:
        weigh(picture, flow)
    return dot_text(picture, "fxlrp")


def draw(
    explainer: Readable, path: str | os.PathLike[str], view: str = "both", *, depth: int | None = None,
    ledger: Ledger | None = None,
) -> Path:  # fmt: skip
    """Write the picture of ``explainer`` to a file and return its path.

    The suffix says what is written: ``.svg``, ``.png`` and ``.pdf`` are rendered by Graphviz,
    ``.dot`` and ``.gv`` hold the DOT text and need nothing. A file is written whole or not at all.

    Args:
        explainer: what to draw.
        path: the file.
        view: as for :func:`dot_source`.
        depth: as for :func:`dot_source`.
        ledger: as for :func:`dot_source`.

    Raises:
        DrawError: suffix, folder, view, depth or ledger will not do, or Graphviz is missing or fails.
        MissingExtraError: the Python package ``graphviz`` is not installed.
    """
    path = checked_path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in TEXT + RENDERED:
        raise DrawError(f"cannot draw {path}: choose a suffix of {', '.join(f'.{k}' for k in RENDERED + TEXT)}")
    if not path.parent.is_dir():
        raise DrawError(f"cannot draw {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise DrawError(f"cannot draw {path}: it is a folder")
    text = dot_source(explainer, view, depth=depth, ledger=ledger)
    content = text.encode() if kind in TEXT else _render(text, kind)
    with whole(path) as beside:
        beside.write_bytes(content)
    return path


def thumbnail(explainer: Readable) -> str | None:
    """The picture as SVG, modules closed until it is of a size to look at.

    Returns:
        ``None`` where it cannot be drawn: the model is not captured yet, or Graphviz is missing.
    """
    try:
        picture = picture_of(explainer.emitted)
        depths = range(1 + max((len(thing.origin.calls) for thing in picture.things.values()), default=0), 0, -1)
        for depth in depths:
            small = collapse(picture, depth)
            if len(small.things) <= _THUMBNAIL:
                break
        return _render(dot_text(small, "fxlrp"), "svg").decode()
    except (DrawError, MissingExtraError, NotCapturedError):
        return None  # a notebook then shows the text


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
