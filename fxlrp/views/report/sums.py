"""Fig. 7 of Otsuki et al. (ECCV 2024): Σ R at each stage against what entered."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch

from fxlrp.common.extras import require
from fxlrp.views.report.answers import Answer
from fxlrp.views.report.stages import Stage

_MARKS = "osD^vPX*<>"


def sums_plot(answers: Sequence[Answer], stages: Sequence[Stage]) -> str:
    """The plot as SVG, a data URI: a mark for each image and answer at each stage.

    Raises:
        MissingExtraError: matplotlib is not installed (extra ``draw``).
    """
    require("matplotlib", "draw").use("agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    start = torch.cat([answer.explanation.start.detach().double().cpu() for answer in answers])
    points = [("image", torch.cat([answer.ledger.relevance.cpu() for answer in answers]))]
    for stage in stages:
        found = torch.cat([answer.relevance[stage.node].detach().double().cpu() for answer in answers])
        points.append((stage.path or stage.node, found.flatten(1).sum(1)))
    for i, (name, sums) in enumerate(points):
        # Matplotlib leaves names that begin with an underscore out of a legend.
        axis.plot(start, sums, _MARKS[i % len(_MARKS)], label=f" {name}", alpha=0.7, markersize=5, fillstyle="none")
    ends = [min(0.0, float(start.min())), max(float(start.max()), 1e-12)]
    axis.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
    axis.set(xlabel="relevance that entered", ylabel="Σ relevance at the stage")
    axis.legend(fontsize=7, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
