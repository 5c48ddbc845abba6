"""What the page shows, made ready for its template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxlrp.maps.heatmap import layer_map
from fxlrp.maps.placing import Box, placed
from fxlrp.maps.rendering import blurred, color_range, colorize, overlay, stretched, to_photo
from fxlrp.results.ledger import Ledger
from fxlrp.results.words import absorbed_in_words, in_words, titled
from fxlrp.views.entry import Entry, Map, data_uri, frame_of, page
from fxlrp.views.readable import Readable
from fxlrp.views.report.answers import Answer
from fxlrp.views.report.stages import Stage
from fxlrp.views.report.sums import sums_plot

_THUMBNAIL = 112
_SIDE = 1600
_BLUR = 1.0
"""Of maps on photographs, in pixels of what the model sees."""


@dataclass(frozen=True)
class Look:
    """What a page is made of."""

    explainer: Readable
    images: Tensor
    photos: Sequence[Any] | None
    boxes: Sequence[Box | None] | None
    names: Sequence[str] | None
    answers: Sequence[Answer]
    stages: Sequence[Stage]
    title: str | None


def render(look: Look) -> str:
    """The page as text."""
    explainer, first = look.explainer, look.answers[0]
    ledger, several = first.ledger, len(look.images) > 1
    absorbed = {name: 100 * ledger.share(amount) for name, amount in ledger.absorbed.items()}
    return page(
        "report/page.html",
        title=look.title or explainer.model_name,
        preset=explainer.preset_name,
        joins=len(explainer.joins),
        images=[(_entry(look, i), _flows(look, i)) for i in range(len(look.images))],
        mean=_branches(look, ledger, slice(None)) if several else [],
        ledger=_accounts(ledger),
        absorbed=absorbed_in_words(absorbed, " %"),
        sums=sums_plot(look.answers, look.stages) if several or len(look.answers) > 1 else None,
    )  # fmt: skip


def _entry(look: Look, i: int) -> Entry:
    """The photograph of an image with its maps."""
    box = None if look.boxes is None else look.boxes[i]
    photo = to_photo(stretched(look.images[i]) if look.photos is None else look.photos[i])
    size = (photo.shape[1], photo.shape[0])
    below = photo.permute(2, 0, 1).float() / 255
    maps = []
    for answer in look.answers:
        heat = blurred(answer.heatmaps[i], _BLUR).float()
        heat = heat if box is None else placed(heat, box, size)
        limit = color_range([heat])
        start, ledger = float(answer.explanation.start[i]), answer.ledger
        arrived = float(ledger.relevance[i])
        absorbed = {name: float(amount[i]) for name, amount in ledger.absorbed.items()}
        unit, question = answer.explanation.unit, answer.questions[i]
        picture = data_uri(overlay(below, heat, smooth=0, limit=limit), _SIDE)
        maps.append(Map(question, titled(question, answer.probabilities[i], start, arrived, unit), picture, limit, unit,
                        in_words(start, arrived, absorbed, unit)))  # fmt: skip
    name = f"image {i + 1}" if look.names is None else look.names[i]
    return Entry(name, data_uri(photo, _SIDE), look.answers[0].top(i), maps, frame_of(box, size), size[0] / size[1])


def _flows(look: Look, i: int) -> list[dict[str, Any]]:
    return [_flow(look, answer, i) for answer in look.answers]


def _flow(look: Look, answer: Answer, i: int) -> dict[str, Any]:
    """How the relevance of an image flows."""
    absorbed = sum(float(amount[i]) for amount in answer.ledger.absorbed.values())
    start, heat = float(answer.explanation.start[i]), answer.heatmaps[i]
    stages = [_stage(stage.path or stage.node, stage.shape, answer.relevance[stage.node][i], look, start)
              for stage in look.stages]  # fmt: skip
    last = {"name": "the image", "shape": _told(look.images.shape[1:]), "share": _share(heat, start),
            "picture": data_uri(colorize(heat), 2 * _THUMBNAIL, "PNG")}  # fmt: skip
    return {
        "start": start, "sum": float(answer.ledger.relevance[i]), "absorbed": absorbed,
        "unit": answer.explanation.unit, "stages": [*stages, last], "joins": _branches(look, answer.ledger, i),
    }  # fmt: skip


def _stage(name: str, shape: Sequence[int], relevance: Tensor, look: Look, start: float) -> dict[str, Any]:
    height, width = look.images.shape[-2:]
    scale = _THUMBNAIL / max(height, width)
    relevance = relevance.detach().cpu()
    found = layer_map(relevance, round(height * scale), round(width * scale))
    assert found is not None  # it would be no stage
    return {"name": name, "shape": _told(shape), "share": _share(relevance, start),
            "picture": data_uri(colorize(found), _THUMBNAIL, "PNG")}  # fmt: skip


def _share(relevance: Tensor, start: float) -> float:
    return float(relevance.double().sum()) / start if start else 0.0


def _told(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _branches(look: Look, ledger: Ledger, i: Any) -> list[dict[str, Any]]:
    """How each join shares its relevance, from the image to the output: of item ``i``, or the mean of a slice."""
    rows = {row.node: row for row in ledger if row.kind == "join"}
    found = []
    for join in look.explainer.joins:
        row = rows.get(join.name)
        if row is None or join.skip == join.residual:
            continue
        received = float(row.received[i].mean())
        shares = [float(row.to[name][i].mean()) if name in row.to else 0.0 for name in (join.skip, join.residual)]
        whole = sum(map(abs, shares)) or 1.0
        found.append(
            {
                "name": join.path or join.name,
                "kind": join.kind,
                "skip": shares[0] / received if received else 0.0,
                "width": 100 * abs(shares[0]) / whole,
                "received": received / (float(ledger.start[i].abs().mean()) or 1.0),
            }
        )
    return found


def _accounts(ledger: Ledger) -> list[dict[str, Any]]:
    return [
        {
            "node": row.node, "kind": row.kind, "rule": row.rule, "received": 100 * ledger.share(row.received),
            "handed": 100 * ledger.share(row.handed_on), "absorbed": 100 * ledger.share(row.absorbed),
            "reason": row.reason, "rescaled": 100 * ledger.share(row.rescaled),
        }
        for row in ledger.telling
    ]  # fmt: skip
