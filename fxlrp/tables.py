"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, a rule under their heads."""
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    rule = "  ".join("-" * width for width in widths)

    def row(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    return "\n".join([row(columns), rule, *map(row, lines)])
