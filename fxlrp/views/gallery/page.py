"""The page, from its template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fxlrp.results.files import write
from fxlrp.views.entry import Entry, page


def write_gallery(
    entries: Sequence[Entry], path: str | os.PathLike[str], title: str, missing: Sequence[str] = ()
) -> Path:
    """Write the page, completely or not at all.

    Args:
        entries: what it shows, in this order.
        path: the file, .html; its folder is created if needed.
        title: of the page.
        missing: a line for each file that could not be explained, and why.

    Raises:
        InputError: the file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed (extra ``draw``).
    """
    text = page("gallery/page.html", entries=entries, title=title, missing=missing)
    return write(path, dict.fromkeys((".html", ".htm"), lambda beside: beside.write_text(text, encoding="utf-8")))
