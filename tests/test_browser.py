"""What is made for a browser, seen in one; skipped where Playwright or Chromium is missing."""

import json
import re

import pytest
import torch
from torchvision import models

import fxlrp
from docs.chromium import CHROMIUM, browser, explored
from fxlrp.explorer import write_graph
from fxlrp.views.explorer.graph import BOTH

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


@pytest.mark.parametrize("width", [1000, 400])
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
