"""A story as one page: the text in colours, a line for each explained token."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from fxlrp.maps.tokens import to_html

if TYPE_CHECKING:
    from fxlrp.language.story import Story

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body{{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
summary{{cursor:pointer;margin:.6rem 0}}p{{line-height:1.9}}
.number{{color:#666;font-variant-numeric:tabular-nums}}</style>
</head><body><h1>{title}</h1>"""


def page(story: Story) -> str:
    """The page; it needs no network.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rival = f" rather than “{story.against}”" if story.against is not None else ""
    lines = [_HEAD.format(title=html.escape(f"What “{story.answer.strip()}”{rival} rests on"))]
    names = [name.replace("\n", "⏎").strip() or "␣" for name in story.columns]
    faint = {name for name, part in zip(names, story.parts, strict=True) if part in ("special", "template")}
    shares = ", ".join(f"{part} {100 * share:.1f} %" for part, share in story.shares().items())
    lines.append(f"<p>{to_html(names, story.total(), faint=faint)}</p>")
    lines.append(f"<p>Red speaks for the answer, blue against it; {html.escape(story.start_name)}. "
                 f"Shares of what entered: {html.escape(shares)}.</p>")  # fmt: skip
    limit = float(story.matrix.abs().max()) or None
    for row, token in enumerate(story.rows):
        told = f"{float(story.start[row]):+.3f}, probability {100 * float(story.probability[row]):.1f} %"
        name = html.escape(token.strip() or "␣")
        text = to_html(names, story.matrix[row], limit=limit, faint=faint)
        head = f"<summary><b>{name}</b> <span class=number>{told}</span></summary>"
        lines.append(f"<details open>{head}<p>{text}</p></details>")
    return "\n".join([*lines, "</body></html>"])
