"""What is made for a browser, seen in one; skipped where Playwright or Chromium is missing."""

import json
import re

import pytest
import torch
from torchvision import models

import fxlrp
from docs.chromium import CHROMIUM, browser, explored
from fxlrp.explorer import write_graph
from fxlrp.geometry import Box
from fxlrp.views.explorer.graph import BOTH
from fxlrp.views.gallery import Entry, Map, write_gallery

pytest.importorskip("playwright.sync_api")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

EXPLORE = """
import sys, torch
from torchvision import models
import fxlrp

torch.manual_seed(0)
explainer = fxlrp.compile(models.resnet18(num_classes=4).eval())
explainer.explore(torch.rand(1, 3, 64, 64), port=int(sys.argv[1]), browser=False)
"""


class Watched:
    """A page, and what it said and asked for."""

    def __init__(self, found, width, height=800):
        self.page = found.new_page(viewport={"width": width, "height": height})
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_from_disk_asks_for_nothing_and_fits_the_screen(chromium, tmp_path, width):
    torch.manual_seed(0)
    explainer = fxlrp.compile(models.resnet18(num_classes=4).eval(), "conserving")
    place = explainer.report(torch.rand(2, 3, 64, 64), tmp_path / "flow.html")
    seen = Watched(chromium, width)
    seen.page.goto(place.as_uri(), wait_until="networkidle")
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("data:", place.as_uri()))] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert seen.page.evaluate("document.images.length") > 2
    seen.page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_has_a_slider_and_a_switch_for_the_keyboard(chromium, tmp_path, width):
    torch.manual_seed(0)
    explainer = fxlrp.compile(models.resnet18(num_classes=4).eval(), "conserving")
    photo, box = torch.rand(3, 100, 300), Box(100, 0, 200, 100)
    place = explainer.report(torch.rand(2, 3, 64, 64), tmp_path / "flow.html", photos=[photo] * 2, boxes=[box] * 2,
                             class_names=["a very long name of a class " * 5, "bee", "cat", "dog"])  # fmt: skip
    seen = Watched(chromium, width)
    seen.page.goto(place.as_uri(), wait_until="networkidle")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    looked = seen.page.locator(".looked").nth(1)
    map_, stages = looked.locator("img.map"), looked.get_by_text("At every stage")
    first = map_.get_attribute("src")
    seen.page.keyboard.press("Tab")  # the first photograph's slider, and its switch
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Tab")
    slider = looked.get_by_role("slider", name="From the photograph to the evidence")
    assert slider.evaluate("each => each === document.activeElement")
    seen.page.keyboard.press("Home")
    assert map_.evaluate("each => getComputedStyle(each).opacity") == "0"
    assert slider.get_attribute("aria-valuetext") == "0 % evidence"
    frame, picture = looked.locator(".frame").bounding_box(), map_.bounding_box()
    assert frame["width"] == pytest.approx(picture["width"] / 3, abs=1)
    assert frame["x"] - picture["x"] == pytest.approx(picture["width"] / 3, abs=1)
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("ArrowDown")
    assert map_.get_attribute("src") != first
    assert [stages.nth(i).is_visible() for i in range(3)] == [False, True, False]
    assert looked.locator(".facts:visible").count() == 1
    summary = seen.page.locator("summary")
    summary.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.get_by_text("layer4_1_add").is_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.errors == []
    seen.page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_gallery_has_a_slider_and_a_switch_and_fits_the_screen(chromium, tmp_path, width):
    drawing = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='80' height='60'><rect width='80' "
    photo, first, second = (f"{drawing}height='60' fill='{colour}'/></svg>" for colour in ("grey", "red", "blue"))
    maps = [Map("tiger cat", "tiger cat, 39 %", first, 0.01, "logits", "Nothing was absorbed."),
            Map("tiger cat, not <lynx>", "0.3 logits", second, 0.02, "logits", "Nothing was absorbed.")]  # fmt: skip
    entries = [Entry(f"a very long name of a photograph {number}.jpg" * 3, photo, [("tiger cat", 39.2)], maps)
               for number in range(2)]  # fmt: skip
    place = write_gallery(entries, tmp_path / "index.html", "2 files explained")
    seen = Watched(chromium, width)
    seen.page.goto(place.as_uri(), wait_until="networkidle")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    entry = seen.page.locator("article").nth(1)
    map_ = entry.locator("img.map")
    entry.get_by_role("slider").focus()
    for _ in range(30):
        seen.page.keyboard.press("ArrowLeft")
    assert float(map_.evaluate("each => each.style.opacity")) == 0.7
    entry.get_by_role("radio", name="tiger cat, not <lynx>").check()
    assert "blue" in map_.get_attribute("src")
    assert map_.get_attribute("alt") == "Evidence for tiger cat, not <lynx>"
    assert entry.get_by_text("0.3 logits").is_visible()
    assert not entry.get_by_text("tiger cat, 39 %").is_visible()
    seen.page.keyboard.press("ArrowUp")  # from radio to radio
    assert "red" in map_.get_attribute("src")
    assert "red" in seen.page.locator("article").nth(0).locator("img.map").get_attribute("src")
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("data:", place.as_uri()))] == []
    seen.page.close()


def test_model_explorer_shows_the_graphs_and_their_data(chromium, tmp_path):
    pytest.importorskip("model_explorer")
    torch.manual_seed(0)
    explainer = fxlrp.compile(models.resnet18(num_classes=4).eval(), "conserving")
    (path,) = write_graph(explainer, tmp_path / "net.json")
    written = json.loads(path.read_text())
    with explored(EXPLORE) as address:
        seen = Watched(chromium, 1400)
        seen.page.goto(address, wait_until="domcontentloaded")
        for name in ("milliseconds", "absorbed %", "skip %", "relevance %"):
            seen.page.get_by_text(name).first.wait_for(timeout=60_000)
        text = seen.page.inner_text("body")
        # Model and relevance beside each other, as boxes that open, and all the nodes that were written.
        nodes = next(graph["nodes"] for graph in written["graphs"] if graph["id"] == BOTH)
        assert f"{len(nodes)} nodes" in text
        assert re.search(r"0\tmodel\b", text)
        assert re.search(r"1\trelevance\b", text)
        # Fonts and a look for a newer version are asked for from elsewhere; without a network only these fail.
        assert [error for error in seen.errors if "ERR_NAME_NOT_RESOLVED" not in error] == []
        seen.page.close()
