"""The page, from its template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fxlrp.common.extras import require
from fxlrp.common.version import __version__
from fxlrp.results.files import write


@dataclass(frozen=True)
class Map:
    """One explanation of an entry.

    Attributes:
        question: what it answers, such as ``"tabby cat"`` or ``"tabby cat, not lynx"``.
        title: the same with its numbers.
        picture: relevance on the photograph, as a data URI.
        limit: the relevance at the end of the colours, in ``unit``; 0: it is not told.
        unit: such as ``"logits"``.
        ledger: what became of the relevance, in words.
    """

    question: str
    title: str
    picture: str
    limit: float
    unit: str
    ledger: str


@dataclass(frozen=True)
class Entry:
    """One photograph, or another input.

    Attributes:
        title: its name.
        photo: as a data URI; empty: there is none.
        top: the most probable classes and their percentages.
        maps: the explanations; the first one is shown at first.
    """

    title: str
    photo: str
    top: Sequence[tuple[str, float]]
    maps: Sequence[Map]


def write_gallery(entries: Sequence[Entry], path: str | os.PathLike[str], title: str) -> Path:
    """Write the page, completely or not at all.

    Args:
        entries: what it shows, in this order.
        path: the file, .html; its folder is created if needed.
        title: of the page.

    Raises:
        InputError: the file cannot be written.
        MissingExtraError: jinja2 is not installed (extra ``draw``).
    """
    environment = require("jinja2", "draw").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("fxlrp.views.gallery").joinpath("page.html").read_text(encoding="utf-8")
    text = environment.from_string(template).render(entries=entries, title=title, version=__version__)
    return write(path, dict.fromkeys((".html", ".htm"), lambda beside: beside.write_text(text, encoding="utf-8")))
