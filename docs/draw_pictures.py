"""The pictures of README.md and of these pages, from real runs: ``make pictures``.

The network is the trained EfficientNet-Lite0 of the demo, the photographs are scikit-image's. Pages and Model Explorer
are seen in Chromium; without one their pictures are left as they are, and that is said. Graphs need Graphviz.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import fxlrp
from docs.chromium import CHROMIUM, browser, explored
from examples import demo
from examples.efficientnet_lite0 import load
from fxlrp.cli.options import ExplainOptions
from fxlrp.geometry import box_of
from fxlrp.images import as_seen, read_image, to_input
from fxlrp.render import Cell, Line, Scale, grid, overlay, sheet, to_photo

PAGES = Path(__file__).parent
OUT = PAGES / "pictures"
PRESETS = ("evidence", "conserving", "otsuki2024", "epsilon_plus", "epsilon_gamma_box", "epsilon")

EXPLORE = f"""
import sys
from examples import demo
from examples.efficientnet_lite0 import load
from fxlrp.cli.options import ExplainOptions
from fxlrp.geometry import box_of
from fxlrp.images import read_image, to_input
import fxlrp

loaded = load()
image = to_input(read_image(demo.photo_folder() / {demo.PHOTOS[0]!r}), loaded.preprocess)
fxlrp.compile(loaded.model).explore(image.unsqueeze(0), port=int(sys.argv[1]), browser=False)
"""


def main() -> None:
    OUT.mkdir(exist_ok=True)
    demo.main()
    save(Image.open(demo.OUT / "side_by_side.png").convert("RGB"), "side_by_side", 1000)

    loaded = load()
    pictures = [read_image(demo.photo_folder() / name) for name in demo.PHOTOS]
    images = torch.stack([to_input(picture, loaded.preprocess) for picture in pictures])
    photos = [as_seen(picture, loaded.preprocess) for picture in pictures]
    draw_grids(loaded.model, images, photos)
    draw_pointing(loaded.model, images, photos, loaded.classes)
    draw_graphs()
    draw_tiles(pictures[:3])
    if CHROMIUM is None:
        print("there is no Chromium: pictures of pages are left as they are")
        return
    with browser() as found:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            explainer = fxlrp.compile(loaded.model)
            boxes = [box_of(picture.size, loaded.preprocess) for picture in pictures[:2]]
            explainer.report(images[:2], page, class_names=loaded.classes, photos=pictures[:2], boxes=boxes,
                             names=demo.PHOTOS[:2])  # fmt: skip
            shoot_report(found, page.as_uri())
        with explored(EXPLORE) as address:
            shoot_explorer(found, address)


def draw_grids(model: torch.nn.Module, images: Tensor, photos: list[Tensor]) -> None:
    names = [Path(name).stem for name in demo.PHOTOS]
    maps = {preset: fxlrp.heatmap(fxlrp.compile(model, preset)(images).relevance) for preset in PRESETS}
    save(Image.fromarray(grid(maps, photos, titles=names, side=1.6).numpy()), "presets", 1000)


def draw_pointing(model: torch.nn.Module, images: Tensor, photos: list[Tensor], classes: Any) -> None:
    """Four photographs as one input: the maps of the class of each, under z⁺ and under the default."""
    image, photo = (torch.cat([torch.cat([*each[:2]], 2), torch.cat([*each[2:]], 2)], 1) for each in (images, photos))
    targets, lines = model(images).argmax(1).tolist(), []
    for preset in ("conserving", "evidence"):
        maps = fxlrp.heatmap(fxlrp.compile(model, preset)(image[None], target=targets).relevance)[0]
        shown = [Cell(overlay(photo, one), classes[target]) for one, target in zip(maps, targets, strict=True)]
        lines.append(Line([Cell(to_photo(photo), "one input"), *shown], preset, Scale("symmetric")))
    save(Image.fromarray(sheet(lines, side=2.2, font=11).numpy()), "pointing", 1000)


def draw_graphs() -> None:
    """The small model of how_it_works.md, with the relevance that flows."""
    code = (PAGES / "how_it_works.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    explainer = names["explainer"]
    explainer.draw(OUT / "small.svg", ledger=explainer.ledger(images))
    print("docs/pictures/small.svg")


def draw_tiles(pictures: list[Image.Image]) -> None:
    """Three photographs beside each other, as the command line explains them by windows."""
    same = [picture.resize((round(picture.width * 600 / picture.height), 600), 3) for picture in pictures]
    row = Image.new("RGB", (sum(picture.width for picture in same), 600))
    for number, picture in enumerate(same):
        row.paste(picture, (sum(each.width for each in same[:number]), 0))
    with tempfile.TemporaryDirectory() as folder:
        photo, out = Path(folder) / "row.jpg", Path(folder) / "tiles.png"
        row.save(photo, quality=92)
        model = "python:examples.efficientnet_lite0:load"
        ExplainOptions(images=[photo], model=model, view="tiles", bar=True, out=out).run()
        save(Image.open(out).convert("RGB"), "tiles", 1200)


def shoot_report(found: Any, address: str) -> None:
    for name, width, height in (("report", 1280, 1500), ("report_phone", 390, 844)):
        page = found.new_page(viewport={"width": width, "height": height})
        page.goto(address, wait_until="networkidle")
        shoot(page, name, width)


def shoot_explorer(found: Any, address: str) -> None:
    """Relevance opened, and one of its blocks; places are those of Model Explorer 0.1.34 in a window of this size."""
    page = found.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_text("relevance %").first.wait_for(timeout=60_000)
    page.wait_for_timeout(4000)
    for x, y in ((459, 531), (482, 488)):
        page.mouse.click(x, y)
        page.wait_for_timeout(3000)
    shoot(page, "explorer", 1400)


def shoot(page: Any, name: str, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "page.png"
        page.screenshot(path=place)
        save(Image.open(place).convert("RGB"), name, width)
    page.close()


def save(image: Image.Image, name: str, width: int) -> None:
    """As a JPEG that is no wider than that."""
    image.thumbnail((width, 10 * width))
    image.save(OUT / f"{name}.jpg", quality=82)
    print(f"docs/pictures/{name}.jpg")


if __name__ == "__main__":
    main()
