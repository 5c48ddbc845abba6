"""An explanation to look at: a few lines of text, a table for a notebook, a plot."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from fxlrp.results.explanation import Explanation

_MOST_ITEMS = 4
"""Items that are told of one by one."""


def text(explanation: Explanation) -> str:
    """What it explains, and its sums, in a few lines; never the numbers of the tensors."""
    try:
        explained, explanation = explanation, explanation.by_item
        lines = [f"Explanation of {', '.join(explanation.inputs) or 'inputs'}, start: {explanation.start_name or '?'}"]
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in explained.by_input.items())
        lines.append(f"  relevance: {shapes}; checkpoints: {', '.join(explanation.checkpoints) or 'none'}")
        lines += [f"  {' '.join(line)}" for line in _facts(explanation)]
        return "\n".join(lines)
    except Exception:  # of what a transformation made of it, such as torch.func's, whose tensors hold no numbers
        return f"<Explanation of {', '.join(explanation.inputs) or 'inputs'}>"


def page(explanation: Explanation) -> str:
    """The same as a table in HTML, with the plot where it can be drawn."""
    head, *lines = (html.escape(line) for line in text(explanation).splitlines())
    body = "".join(f"<div>{line.strip()}</div>" for line in lines)
    drawn = ""
    try:
        figure, buffer = plot(explanation, None, (), (), pixels=False), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        drawn = f'<img alt="relevance, red for the class, blue against it" src="data:image/png;base64,{encoded}">'
    except (InputError, MissingExtraError):
        pass
    return f"<div><strong>{head}</strong>{body}{drawn}</div>"


def plot(
    explanation: Explanation, items: Sequence[int] | None, titles: Sequence[str], labels: Sequence[str], *, pixels: bool
) -> Any:
    """See :meth:`Explanation.plot`."""
    from fxlrp.maps.plots import Panel
    from fxlrp.maps.plots import plot as plotted

    explanation = explanation.by_item
    axes, count = explanation.start.dim(), len(explanation.start)
    chosen = range(min(count, _MOST_ITEMS)) if items is None else list(items)
    if wrong := [item for item in chosen if not -count <= item < count]:
        raise InputError(f"there is no item {wrong[0]}: the batch has {count}")
    targets = explanation.start.shape[1] if axes > 1 else 1
    if isinstance(titles, str) or not isinstance(titles, Sequence):
        raise InputError(f"titles={titles!r}: give a list of texts")
    if titles and len(titles) != (targets if axes > 1 else len(chosen)):
        raise InputError(f"there are {len(titles)} titles for {targets if axes > 1 else len(chosen)} maps")
    rows = []
    for place, item in enumerate(chosen):
        row = []
        for target in range(targets):
            index = (item, target) if axes > 1 else (item,)
            title = (titles[target if axes > 1 else place] if titles else _title(explanation, index))
            for name, part in explanation.by_input.items():
                given = _of_item(explanation, name, item)
                caption = title if len(explanation.inputs) == 1 else f"{name}: {title}"
                row.append(Panel(part[index], given, caption, labels, None if pixels else explanation.patch))
        rows.append(row)
    if axes == 1 and len(explanation.inputs) == 1 and rows and rows[0][0].relevance.dim() == 3:
        rows = [[panel for row in rows for panel in row]]  # pictures stand side by side
    return plotted(rows, explanation.unit)


def _of_item(explanation: Explanation, name: str, item: int) -> Tensor | None:
    if not explanation.given:
        return None
    given = explanation.given[explanation.inputs.index(name)]
    return given[item] if given.dim() else None


def _title(explanation: Explanation, index: tuple[int, ...]) -> str:
    start = f"{float(explanation.start[index]):.4g} {explanation.unit}"
    return start if explanation.target is None else f"class {int(explanation.target[index])}, {start}"


def _facts(explanation: Explanation) -> list[tuple[str, ...]]:
    """A line for each of the first items: the class, what entered, what arrived."""
    start, axes = explanation.start.detach(), explanation.start.dim()
    parts = explanation.by_input.values()
    sums = torch.stack([part.detach().double().reshape(*start.shape, -1).sum(axes) for part in parts])
    arrived = sums.sum(0)
    lines: list[tuple[str, ...]] = []
    for item in range(min(len(start), _MOST_ITEMS)):
        for index in [(item,)] if axes == 1 else [(item, target) for target in range(min(start.shape[1], _MOST_ITEMS))]:
            lines.append((f"item {item}:", f"{_title(explanation, index)}, Σ relevance {float(arrived[index]):.4g}"))
    if rest := start.numel() - len(lines):
        lines.append((f"and {rest} more",))
    return lines
