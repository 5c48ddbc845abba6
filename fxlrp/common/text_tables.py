"""Tables as text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as plain text: columns as wide as their widest cell, a line below the headings."""
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    rule = "  ".join("-" * width for width in widths)

    def row(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    return "\n".join([row(columns), rule, *map(row, lines)])


def markdown(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""

    def row(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([row(columns), "|" + "---|" * len(columns), *map(row, lines)])


def html_table(columns: Sequence[str], lines: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table in HTML, for a notebook."""

    def row(cells: Sequence[object], cell: str) -> str:
        return "<tr>" + "".join(f"<{cell}>{html.escape(str(text))}</{cell}>" for text in cells) + "</tr>"

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(row(line, "td") for line in lines)
    return f"<table>{title}<thead>{row(columns, 'th')}</thead><tbody>{body}</tbody></table>"


def verbatim(text: str) -> str:
    """Text as code for a cell in Markdown, because an error may contain angle brackets, stars and underscores."""
    return "`" + text.replace("`", "'") + "`" if text else ""
