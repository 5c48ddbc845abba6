"""A folder for the browser: its page explains a photograph as Python does, and asks nobody else for anything."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fxlrp
from docs.chromium import CHROMIUM, browser
from fxlrp.errors import ExportError
from fxlrp.exports.web import FILES, export_web
from fxlrp.loading.preprocessing import InputFormat

pytest.importorskip("onnxscript")

GREY = InputFormat((32, 32), 40, (0.4,), (0.3,), 1, "bicubic")
COLOUR = InputFormat((32, 48), 40, (0.4, 0.5, 0.3), (0.2, 0.3, 0.25))


INPUT = """async ([data, width, height]) => {
  const page = await import("./picture.js"), about = await (await fetch("about.json")).json();
  return [...page.input(page.seen({ data: Uint8ClampedArray.from(data), width, height }, about), about)];
}"""


def net(channels):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def test_the_runtime_must_be_whole(tmp_path):
    (tmp_path / FILES[0]).write_text("")
    with pytest.raises(ExportError, match=rf"lacks {FILES[1]}, {FILES[2]}"):
        export_web(fxlrp.compile(net(3))._engine, tmp_path / "out", COLOUR, runtime=tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="npm is needed to fetch onnxruntime-web"):
        fxlrp.compile(net(3)).export_web(tmp_path / "out", COLOUR)


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with browser() as found:
        yield found


@pytest.fixture
def served(tmp_path):
    """Where a folder is served, and the folder."""
    folder = tmp_path / "web"
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()


def photograph(width, height):
    """A photograph with smooth and sharp parts."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9)], axis=-1) * 90 + 128
    waves[height // 4 : height // 2, width // 3 : width // 2] = [250, 20, 60]
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("form", "size", "width"), [(COLOUR, (150, 101), 1100), (GREY, (60, 90), 390)],
                         ids=["colour, desktop", "grey, phone"])  # fmt: skip
def test_the_page_explains_a_photograph_as_python_does(chromium, served, tmp_path, form, size, width):
    address, folder = served
    explainer = fxlrp.compile(net(form.channels))
    try:
        explainer.export_web(folder, form, ["cat", "dog", "crane"])
    except ExportError as error:
        if "npm" in str(error):
            pytest.skip(str(error))
        raise
    photo = photograph(*size)
    photo.save(tmp_path / "photo.png")
    page = chromium.new_page(viewport={"width": width, "height": 900})
    errors, requests = [], []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_function("window.ready", timeout=60_000)
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_function("window.explanation", timeout=60_000)
    found = torch.tensor(page.evaluate("[...window.explanation.relevance]"))
    expected = explainer(form.preprocess()(photo)[None])
    assert errors == []
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)
    scale = expected.relevance.abs().max()
    assert float((found - expected.relevance.flatten()).abs().max() / scale) < 1e-4
    # Maps of deep networks are sensitive to their input, which is the same to the bit.
    for shown in (photo, Image.effect_noise((403, 300), 90).convert("RGB")):
        given = [[*shown.tobytes()], *shown.size]
        made = page.evaluate(INPUT, given)
        assert torch.equal(torch.tensor(made), form.preprocess()(shown).flatten())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    buttons = page.get_by_role("button", pressed=True)
    assert ["cat", "dog", "crane"][int(expected.target)] in buttons.first.inner_text()
    # Another class, by the keyboard.
    rival = page.get_by_role("button", pressed=False).filter(has_text="%").first
    rival.focus()
    before = page.inner_text("#status")
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.getElementById('status').textContent.startsWith('Why') && "
                           f"document.getElementById('status').textContent !== {before!r}")  # fmt: skip
    page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
    page.close()
