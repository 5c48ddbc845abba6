"""What the page shows, made ready for its template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.extras import require
from fxlrp.common.version import __version__
from fxlrp.maps.heatmap import layer_map
from fxlrp.maps.rendering import COLORS, colorize, fitting_colors, overlay, scaled, stretched, to_photo
from fxlrp.passes.joins import Join
from fxlrp.results.explanation import Explanation
from fxlrp.results.ledger import Ledger
from fxlrp.views.readable import Readable
from fxlrp.views.report.stages import Stage

_THUMBNAIL = 112


@dataclass(frozen=True)
class Look:
    """What a page is made of."""

    explainer: Readable
    images: Tensor
    photos: Sequence[Any] | None
    explanation: Explanation
    ledger: Ledger
    heatmaps: Tensor
    stages: Sequence[Stage]
    relevance: dict[str, Tensor]
    class_names: Sequence[str] | None
    title: str | None


def render(look: Look) -> str:
    """The page as text."""
    jinja2 = require("jinja2", "draw")
    template = resources.files("fxlrp.views.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    explainer, ledger = look.explainer, look.ledger

    return str(
        environment.from_string(template).render(
            title=look.title or explainer.model_name,
            preset=explainer.preset_name,
            version=__version__,
            joins=len(explainer.joins),
            images=[_image(look, i) for i in range(len(look.images))],
            mean=_branches(look, slice(None)) if len(look.images) > 1 else [],
            ledger=_accounts(ledger),
            absorbed=[(reason, 100 * ledger.share(amount)) for reason, amount in ledger.absorbed.items()],
            sums=_sums_plot(look),
            gradients={name: _gradient(name) for name in COLORS},
        )
    )


def _image(look: Look, i: int) -> dict[str, Any]:
    photo = look.images[i] if look.photos is None else look.photos[i]
    shown = stretched(photo) if look.photos is None else photo
    heat = look.heatmaps[i].float()
    colors = fitting_colors(heat)
    end = float(heat.abs().max())
    start = float(look.explanation.start[i])
    absorbed = sum(float(amount[i]) for amount in look.ledger.absorbed.values())
    return {
        "photo": _uri(to_photo(shown), "JPEG"),
        "overlay": _uri(overlay(shown, heat, colors), "JPEG"),
        "map": _uri(colorize(heat, colors)),
        "colors": colors,
        "limit": _limit(heat, colors) if end else 0.0,
        "what": _explained(look, i),
        "start": start,
        "sum": float(look.ledger.relevance[i]),
        "absorbed": absorbed,
        "stages": [_stage(look, stage, i) for stage in look.stages],
        "joins": _branches(look, i),
    }


def _explained(look: Look, i: int) -> str:
    target = look.explanation.target
    if target is None:
        return "what the start says"
    number = int(target[i])
    name = f"class {number}" if look.class_names is None else look.class_names[number]
    output = look.explanation.output
    if not isinstance(output, Tensor) or output.dim() != 2:
        return name
    return f"{name}, probability {float(output[i].detach().double().softmax(0)[number]):.4f}"


def _stage(look: Look, stage: Stage, i: int) -> dict[str, Any]:
    relevance = look.relevance[stage.node][i].detach().cpu()
    height, width = look.images.shape[-2:]
    scale = _THUMBNAIL / max(height, width)
    found = layer_map(relevance, round(height * scale), round(width * scale))
    assert found is not None  # it would be no stage
    start = float(look.explanation.start[i])
    total = float(relevance.double().sum())
    return {
        "name": stage.path or stage.node,
        "shape": " × ".join(map(str, stage.shape)),
        "picture": _uri(colorize(found, fitting_colors(found))),
        "share": total / start if start else 0.0,
    }


def _branches(look: Look, i: Any) -> list[dict[str, Any]]:
    """How each join shares its relevance, from the image to the output: of item ``i``, or the mean of a slice."""
    rows = {row.node: row for row in look.ledger if row.kind == "join"}
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
                "name": _join_name(join),
                "kind": join.kind,
                "skip": shares[0] / received if received else 0.0,
                "width": 100 * abs(shares[0]) / whole,
                "received": received / (float(look.ledger.start[i].abs().mean()) or 1.0),
            }
        )
    return found


def _join_name(join: Join) -> str:
    return join.path or join.name


def _accounts(ledger: Ledger) -> list[dict[str, Any]]:
    return [
        {
            "node": row.node, "kind": row.kind, "rule": row.rule, "received": 100 * ledger.share(row.received),
            "handed": 100 * ledger.share(row.handed_on), "absorbed": 100 * ledger.share(row.absorbed),
            "reason": row.reason, "rescaled": 100 * ledger.share(row.rescaled),
        }
        for row in ledger.telling
    ]  # fmt: skip


def _sums_plot(look: Look) -> str:
    """Fig. 7 of Otsuki et al. (ECCV 2024): Σ R at each stage against what entered, as SVG."""
    require("matplotlib", "draw").use("agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    start = look.explanation.start.detach().double().cpu()
    points = [("image", look.ledger.relevance.cpu())]
    for stage in look.stages:
        sums = look.relevance[stage.node].detach().double().flatten(1).sum(1).cpu()
        points.append((stage.path or stage.node, sums))
    marks = "osD^vPX*<>"
    for i, (name, sums) in enumerate(points):
        axis.plot(start, sums, marks[i % len(marks)], label=name, alpha=0.7, markersize=5, fillstyle="none")
    ends = [min(0.0, float(start.min())), max(float(start.max()), 1e-12)]
    axis.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
    axis.set(xlabel="relevance that entered", ylabel="Σ relevance at the stage")
    axis.legend(fontsize=7, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _limit(heat: Tensor, colors: str) -> float:
    """The relevance at which the colours end."""
    values = scaled(heat, colors).abs()
    inside = (values > 0) & (values < 1)
    if not bool(inside.any()):
        return float(heat.abs().max())
    return float((heat.double().abs()[inside] / values[inside]).median())


def _gradient(colors: str) -> str:
    """The colour map as a gradient of CSS."""
    ramp = torch.linspace(-1 if colors == "symmetric" else 0, 1, 17)
    painted = colorize(ramp[None], colors, percentile=100)[0].tolist()
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in painted)})"


def _uri(picture: Tensor, kind: str = "PNG") -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, format=kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
