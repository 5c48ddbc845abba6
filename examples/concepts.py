"""Concepts: which channels of a block speak for the predicted class, and where in the picture each does.

Concept relevance propagation (Achtibat et al., Nature Machine Intelligence 2023) on the demo's
network and photographs: the relevance at the output of a block ranks its channels; a
conditional map for each of the strongest shows where its part comes from. All maps of a
photograph come from one call. Run from the repository's root: ``python -m examples.concepts``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import Tensor

import fxlrp
from examples.demo import PHOTOS, photo_folder
from examples.efficientnet_lite0 import load
from fxlrp.images import as_seen, read_image, to_input
from fxlrp.models import LoadedModel
from fxlrp.render import Cell, Line, fitting_colors, overlay, save_png, sheet, to_photo

BLOCK, FOLLOWING = "_blocks.4", "_blocks.5"
"""The block whose channels are the concepts, and the one that takes its output."""

OUT = Path("demo/concepts.png")


@dataclass(frozen=True)
class Concepts:
    """The strongest channels of a block for one photograph.

    Attributes:
        caption: the predicted class, and its probability.
        photo: the photograph, (height, width, 3).
        total: the relevance that entered.
        whole: (height, width), the map of all channels.
        channels: their numbers, the strongest first.
        relevance: what of the relevance passes each.
        maps: (channels, height, width), their conditional maps.
    """

    caption: str
    photo: Tensor
    total: float
    whole: Tensor
    channels: list[int]
    relevance: list[float]
    maps: Tensor


def main(
    count: Annotated[int, typer.Option(min=1, max=12, help="How many channels of each photograph.")] = 4,
    preset: Annotated[str, typer.Option(help="The rules; epsilon_gamma_box tells channels apart.")] = "evidence",
    out: Annotated[Path, typer.Option(help="The picture.")] = OUT,
) -> None:
    """Show where in four photographs the strongest channels of a late block find what speaks for the class."""
    console = Console(highlight=False)
    loaded = load()
    explainer = fxlrp.compile(loaded.model, preset, checkpoints=[FOLLOWING])
    found = []
    for name in PHOTOS:
        concepts = strongest(explainer, loaded, read_image(photo_folder() / name), count)
        found.append(concepts)
        console.print(f"[bold]{name}[/]  {concepts.caption}")
        for channel, relevance, heat in zip(concepts.channels, concepts.relevance, concepts.maps, strict=True):
            share, total = 100 * relevance / concepts.total, float(heat.sum())
            console.print(f"  channel {channel:3d}   {share:5.2f} %   relevance {relevance:.6f}, Σ map {total:.6f}")
        whole = float(concepts.whole.sum())
        console.print(f"  all channels 100.00 %   relevance {concepts.total:.6f}, Σ map {whole:.6f}")
    console.print(f"Picture: [bold]{save_png(picture(found), out)}[/]")


def strongest(explainer: fxlrp.Explainer, loaded: LoadedModel, picture: Any, count: int) -> Concepts:
    """The channels of the block that most of the predicted class's relevance passes, and their maps."""
    image = to_input(picture, loaded.preprocess).unsqueeze(0)
    whole = explainer(image)
    relevance, channels = whole.checkpoints[FOLLOWING][0].sum((1, 2)).topk(count)
    conditions = [{BLOCK: [channel]} for channel in channels.tolist()]
    parts = explainer(image, target=whole.target, conditions=conditions)
    target = int(whole.target[0])
    return Concepts(
        caption=f"{loaded.classes[target]}, {100 * float(whole.output.softmax(1)[0, target]):.0f} %",
        photo=as_seen(picture, loaded.preprocess),
        total=float(whole.start[0]),
        whole=fxlrp.heatmap(whole.relevance)[0],
        channels=channels.tolist(),
        relevance=relevance.tolist(),
        maps=fxlrp.heatmap(parts.relevance)[0],
    )


def picture(found: list[Concepts]) -> Tensor:
    """A row a photograph, with the map of all channels and those of the strongest ones on it.

    Returns:
        (height, width, 3), uint8.
    """
    lines = []
    for concepts in found:
        cells = [Cell(to_photo(concepts.photo), concepts.caption)]
        captions = ["all channels"]
        for channel, relevance in zip(concepts.channels, concepts.relevance, strict=True):
            captions.append(f"channel {channel}, {100 * relevance / concepts.total:.1f} %")
        for heat, caption in zip((concepts.whole, *concepts.maps), captions, strict=True):
            cells.append(Cell(overlay(concepts.photo, heat, fitting_colors(heat)), caption))
        lines.append(Line(cells))
    return sheet(lines, side=2)


if __name__ == "__main__":
    if not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit("run it from the repository's root: python -m examples.concepts")
    os.environ.setdefault("COLUMNS", "100")
    typer.run(main)
