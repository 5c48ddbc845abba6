"""Models that read pictures by patch, and how their maps are shown."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fxlrp
from fxlrp.errors import InputError
from tests.checks import assert_close

DOUBLE = torch.float64


class Read(nn.Module):
    """What reads a picture, and two classes."""

    def __init__(self, *layers, scaled=False, beside=False):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.LazyLinear(2)
        self.scaled, self.beside = scaled, beside
        self.eval()(torch.rand(1, 3, 16, 24))

    def forward(self, x):
        read = self.layers((x - 0.5) / 0.25 if self.scaled else x).relu().mean((2, 3))
        return self.head(read + x.mean((2, 3)) if self.beside else read)


@pytest.mark.parametrize(("model", "patch"), [
    (lambda: Read(nn.Conv2d(3, 4, 4, stride=4)), (4, 4)),
    (lambda: Read(nn.Conv2d(3, 4, (2, 4), stride=(2, 4)), nn.ReLU(), nn.Conv2d(4, 4, 3)), (2, 4)),
    (lambda: Read(nn.Conv2d(3, 4, 4, stride=4, padding="valid"), scaled=True), (4, 4)),
    (lambda: Read(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 4, stride=4)), (4, 4)),
    (lambda: Read(nn.Conv2d(3, 4, 4, stride=2)), None),
    (lambda: Read(nn.Conv2d(3, 4, 4, stride=4, padding=1)), None),
    (lambda: Read(nn.Conv2d(3, 4, 2, stride=2, dilation=2)), None),
    (lambda: Read(nn.Conv2d(3, 4, 1)), None),
    (lambda: Read(nn.AvgPool2d(4), nn.Conv2d(3, 4, 1)), None),
    (lambda: Read(nn.Conv2d(3, 3, 4, stride=4), beside=True), None),
    (lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16, num_classes=2).eval(), (8, 8)),
], ids=["patches", "oblong", "behind a scale", "behind a batch norm", "overlapping", "padded", "dilated", "pixels",
        "a pool", "beside pixels", "a ViT"])  # fmt: skip
def test_patches_are_found_in_the_graph(model, patch):
    model = model()
    size = (32, 32) if isinstance(model, torchvision.models.VisionTransformer) else (16, 24)
    explanation = fxlrp.compile(model)(torch.rand(2, 3, *size))
    assert explanation.patch == patch
    assert explanation.by_item.patch == patch


def test_both_captures_find_the_same_patches():
    model = Read(nn.Conv2d(3, 4, 4, stride=4), scaled=True)
    exported = torch.export.export(model, (torch.rand(2, 3, 16, 24),))
    assert fxlrp.compile(exported)(torch.rand(2, 3, 16, 24)).patch == (4, 4)


def test_a_map_by_patch_is_interpolated_between_the_patches_and_keeps_each_sum():
    maps = torch.randn(2, 3, 12, 20, dtype=DOUBLE)
    found = fxlrp.patch_map(maps, (4, 5))
    means = maps.reshape(2, 3, 3, 4, 4, 5).mean((3, 5))
    assert_close(found, F.interpolate(means, (12, 20), mode="bilinear"), 1e-12)
    assert_close(found.sum((2, 3)), maps.sum((2, 3)), 1e-12)
    assert_close(fxlrp.patch_map(maps[0, 0], (4, 5)), found[0, 0], 1e-12)
    even = torch.full((1, 8, 8), 3.0)
    assert_close(fxlrp.patch_map(even, (4, 4)), even, 1e-6)


def test_pixels_beyond_the_last_patch_have_no_relevance():
    maps = torch.ones(1, 10, 9)
    maps[:, 8:], maps[:, :, 8:] = 0, 0
    assert_close(fxlrp.patch_map(maps, (4, 4)), maps, 1e-6)


@pytest.mark.parametrize(("maps", "patch"), [
    (torch.rand(2, 8, 8), (9, 4)), (torch.rand(8), (4, 4)), (torch.ones(8, 8).int(), (4, 4)), (torch.rand(8, 8), 4),
    (torch.rand(8, 8), (0, 4)), (torch.rand(8, 8), (4, 4, 4)), ("map", (4, 4)),
], ids=["too small", "one axis", "integers", "one number", "zero", "three numbers", "text"])  # fmt: skip
def test_what_is_no_map_or_patch_is_an_error(maps, patch):
    with pytest.raises(InputError, match="patch"):
        fxlrp.patch_map(maps, patch)


def test_plots_show_patches_and_single_pixels_where_asked():
    pytest.importorskip("matplotlib")
    explanation = fxlrp.compile(Read(nn.Conv2d(3, 4, 8, stride=8)))(torch.full((1, 3, 16, 24), 0.5))
    shown, single = (explanation.plot(pixels=pixels).axes[0].images[0].get_array() for pixels in (False, True))
    steps = [abs(torch.as_tensor(picture.data).double().diff(dim=1)).mean() for picture in (shown, single)]
    assert steps[0] < steps[1] / 2
    assert explanation._repr_png_() is not None


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_web_page_shows_the_same_map(tmp_path):
    script = Path(fxlrp.__file__).parent / "exports" / "web" / "picture.js"
    (tmp_path / "picture.mjs").write_text(script.read_text())
    heat, about = torch.randn(18, 25), {"height": 18, "width": 25, "patch": [4, 5]}
    (tmp_path / "run.mjs").write_text(
        "import { shown } from './picture.mjs';\n"
        f"const heat = Float32Array.from({heat.flatten().tolist()}), about = {json.dumps(about)};\n"
        "const alone = shown(heat, { ...about, patch: null }) === heat;\n"
        "console.log(JSON.stringify([alone, Array.from(shown(heat, about))]));\n"
    )
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    alone, found = json.loads(done.stdout)
    assert alone
    assert_close(torch.tensor(found).reshape(18, 25), fxlrp.patch_map(heat, (4, 5)), 1e-5)
