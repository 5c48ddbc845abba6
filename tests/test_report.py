"""The flow report is one page that needs nothing else, and tells what the ledger has."""

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torchvision import models

import fxlrp
from fxlrp.errors import InputError, TargetError
from fxlrp.heatmap import layer_map
from fxlrp.views.report.stages import choose_stages


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.words, self.scripts = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.scripts += tag == "script"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return models.resnet18(num_classes=4).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def written(resnet, images, tmp_path_factory):
    explainer = fxlrp.compile(resnet, "conserving")
    path = tmp_path_factory.mktemp("report") / "flow.html"
    assert explainer.report(images, path, class_names=["ant", "<bee>", "cat", "dog"]) == path
    return explainer, path.read_text(encoding="utf-8")


def test_it_needs_nothing_from_elsewhere(written):
    page = Page(written[1])
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert page.scripts == 0
    assert not re.search(r"url\(|@import", written[1])


def test_it_tells_what_was_explained_and_what_arrived(written, images):
    page, explanation = Page(written[1]), written[0](images)
    names = ["ant", "<bee>", "cat", "dog"]
    for i, target in enumerate(explanation.target.tolist()):
        probability = float(explanation.output[i].double().softmax(0)[target])
        assert f"{names[target]}, probability {probability:.4f}" in page.text
        assert f"Relevance of {float(explanation.start[i]):.6f} entered" in page.text
    assert "ResNet" in page.text
    assert "conserving" in page.text


def test_every_join_has_its_share(written, images):
    explainer, text = written
    ledger = explainer.ledger(images)
    shares = [float(re.search(r"skip ([\d-]+) %", label)[1]) for label in re.findall(r'aria-label="([^"]*)"', text)]
    joins = len(explainer.joins)
    assert len(shares) == joins * 3  # each image, and the mean
    row = next(row for row in ledger if row.node == explainer.joins[0].name)
    share = row.to[explainer.joins[0].skip] / row.received
    assert [shares[0], shares[joins]] == [round(100 * float(value)) for value in share]


def test_stages_are_maps_that_everything_flows_through(written, images):
    explainer, _ = written
    stages = choose_stages(explainer.model_graph, explainer.shapes, (64, 64))
    assert stages[0].shape == (512, 2, 2)
    assert {stage.shape[-1] for stage in stages} == {32, 16, 8, 4, 2}
    assert len(stages) <= 8
    assert len({stage.node for stage in stages}) == len(stages)
    found = explainer.relevance_of(images, nodes=[stage.node for stage in stages])
    for relevance in found.values():
        assert torch.allclose(relevance.flatten(1).sum(1), explainer(images).start, rtol=1e-4)


@pytest.mark.parametrize("name", ["densenet121", "vit_b_32", pytest.param("swin_t", marks=pytest.mark.slow)])
def test_stages_of_other_architectures(name):
    model = getattr(models, name)(num_classes=3).eval()
    explainer = fxlrp.compile(model, "conserving")
    explainer(torch.randn(1, 3, 224, 224))
    stages = choose_stages(explainer.model_graph, explainer.shapes, (224, 224))
    assert 3 <= len(stages) <= 8
    assert all(layer_map(torch.rand(stage.shape), 224, 224) is not None for stage in stages)


def test_a_branch_is_no_stage():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.left, self.right = nn.Conv2d(4, 5, 2, 2), nn.Conv2d(4, 6, 2, 2)
            self.fc = nn.Linear(11, 3)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.fc(torch.cat([self.left(x).mean((2, 3)), self.right(x).mean((2, 3))], 1))

    explainer = fxlrp.compile(Forked().eval(), "conserving")
    explainer(torch.rand(1, 3, 8, 8))
    stages = choose_stages(explainer.model_graph, explainer.shapes, (8, 8))
    assert [stage.shape for stage in stages] == [(4, 8, 8)]


def test_a_network_without_maps_has_no_stages(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 3)

        def forward(self, x):
            return self.fc(x.flatten(1))

    path = fxlrp.compile(Flat().eval(), "conserving").report(torch.rand(1, 3, 4, 4), tmp_path / "flat.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "At every stage" not in text
    assert "Where it takes the skip" not in text


def test_photographs_may_be_given(resnet, images, tmp_path):
    explainer = fxlrp.compile(resnet, "conserving")
    own = explainer.report(images[:1], tmp_path / "own.html").read_text(encoding="utf-8")
    given = explainer.report(images[:1], tmp_path / "given.html", photos=[torch.rand(3, 64, 64)], title="My <model>")
    text = given.read_text(encoding="utf-8")
    assert Page(own).sources[1] != Page(text).sources[1]
    assert "My &lt;model&gt;" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "a.txt"}, InputError, "must end in .html"),
        ({"path": "nowhere/a.html"}, InputError, "there is no folder"),
        ({"images": torch.rand(2, 3, 64)}, InputError, "a report is of pictures"),
        ({"images": torch.rand(2, 4, 64, 64)}, InputError, "a report is of pictures"),
        ({"photos": [torch.rand(3, 64, 64)]}, InputError, "1 photographs for 2 images"),
        ({"target": 9}, TargetError, "class"),
        ({"target": [0, 1]}, TargetError, "one target per item"),
    ],
)  # fmt: skip
def test_bad_input_is_told_and_nothing_is_written(options, error, message, resnet, images, tmp_path):
    given = {"images": images, "path": "a.html", **options}
    with pytest.raises(error, match=message):
        fxlrp.compile(resnet, "conserving").report(given.pop("images"), tmp_path / given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


# Notebooks --------------------------------------------------------------------------------------


def test_a_notebook_shows_an_explanation_as_pictures(resnet, images):
    import io

    from PIL import Image

    explanation = fxlrp.compile(resnet, "conserving")(images)
    with Image.open(io.BytesIO(explanation._repr_png_())) as sheet:
        assert sheet.size == (2 * 256, 256)
    several = fxlrp.compile(resnet, "conserving")(images, target=[0, 1])
    assert several._repr_png_() is None
    tokens = fxlrp.compile(nn.Linear(4, 3).eval(), "conserving")(torch.rand(2, 4))
    assert tokens._repr_png_() is None


def test_a_notebook_shows_an_explainer_as_its_graph(resnet):
    import shutil

    shown = fxlrp.compile(resnet, "conserving")._repr_svg_()
    if shutil.which("dot") is None:
        assert shown is None
    else:
        assert shown.lstrip().startswith("<?xml")
        assert "layer4" in shown
    late = fxlrp.compile(models.swin_t(num_classes=3).eval(), "conserving")
    assert late._repr_svg_() is None  # not captured yet
