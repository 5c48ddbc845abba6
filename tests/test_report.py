"""The flow report is one page that needs nothing else, and tells what the ledger has."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

import fxlrp
from fxlrp.errors import InputError, TargetError
from fxlrp.geometry import Box
from fxlrp.heatmap import layer_map
from fxlrp.views.report.stages import choose_stages


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.words, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **attributes):
        wanted = attributes.items()
        return [found for name, found in self.tags if name == tag and all(found.get(n) == v for n, v in wanted)]

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
    assert page.all("script") == [{}]  # its own, with no source
    assert not re.search(r"url\(|@import", written[1])


def test_it_tells_of_the_three_most_probable_classes_and_what_arrived(written, images):
    page, explanation = Page(written[1]), written[0](images)
    names, radios = ["ant", "<bee>", "cat", "dog"], page.all("input", type="radio")
    assert [radio["name"] for radio in radios] == ["map-1"] * 3 + ["map-2"] * 3
    probable = explanation.output.topk(3).indices
    several = written[0](images, target=probable)  # all at once, as the page: rounding may differ for one by itself
    for i, targets in enumerate(probable.tolist()):
        for target, start in zip(targets, several.start[i].tolist(), strict=True):
            probability = float(explanation.output[i].double().softmax(0)[target])
            told = f"{start:.3g}".replace("-", "−")
            assert f"{names[target]}, {100 * probability:.1f} %, {told} {explanation.unit} (100 % arrived)" in page.text
            assert f"Nothing was absorbed: all {told} {explanation.unit} arrived at the input." in page.text
            assert f"Relevance of {start:.6f} {several.unit} entered" in page.text
    assert "ResNet" in page.text
    assert "conserving" in page.text


def test_it_is_told_to_those_who_do_not_see_it(written):
    page = Page(written[1])
    assert page.all("html", lang="en")
    assert all("alt" in image for image in page.all("img"))
    assert [slider["aria-label"] for slider in page.all("input", type="range")] == [
        "From the photograph to the evidence"] * 2  # fmt: skip
    assert len(page.all("fieldset")) == 2
    headings = {found["id"] for tag, found in page.tags if tag == "h2" and "id" in found}
    assert {article["aria-labelledby"] for article in page.all("article")} == headings


def test_the_most_probable_classes_have_their_percentages(written, images):
    page, output = Page(written[1]), written[0](images).output
    names = ["ant", "<bee>", "cat", "dog"]
    for row in output.double().softmax(1):
        told = " ".join(f"{names[i]} {100 * float(row[i]):.2f} %" for i in row.argsort(descending=True))
        assert f"What the model says {told}" in page.text


def test_every_join_has_its_share(written, images):
    explainer, text = written
    ledger = explainer.ledger(images)
    labels = [found["aria-label"] for found in Page(text).all("span", **{"class": "bar"})]
    shares = [float(re.fullmatch(r"skip ([\d-]+) %", label)[1]) for label in labels]
    joins = len(explainer.joins)
    assert len(shares) == joins * 7  # three maps of each image, and the mean
    row = next(row for row in ledger if row.node == explainer.joins[0].name)
    share = row.to[explainer.joins[0].skip] / row.received
    assert [shares[0], shares[3 * joins]] == [round(100 * float(value)) for value in share]


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


def test_classes_are_explained_against_others(resnet, images, tmp_path):
    explainer = fxlrp.compile(resnet, "conserving")
    page = Page(explainer.report(images[:1], tmp_path / "a.html", target=[0, 2], against=2).read_text(encoding="utf-8"))
    assert [found["data-question"] for found in page.all("div", **{"class": "facts"})] == [
        "class 0", "class 2", "class 0, not class 2"
    ]  # fmt: skip
    several = explainer(images[:1], target=0, against=2)
    assert f"Relevance of {float(several.start):.6f} {several.unit} entered" in page.text


def test_what_was_absorbed_is_told_in_words(resnet, images, tmp_path):
    explainer = fxlrp.compile(resnet, "epsilon")
    page = Page(explainer.report(images[:1], tmp_path / "a.html", target=1).read_text(encoding="utf-8"))
    ledger = explainer.ledger(images[:1], target=1)
    assert "by biases" in page.text
    told = f"{float(ledger.absorbed['bias']):.3g}".replace("-", "−")
    assert f"{told} by biases" in page.text
    assert page.all("input", type="radio") == []


def test_photographs_may_be_given(resnet, images, tmp_path):
    explainer = fxlrp.compile(resnet, "conserving")
    own = explainer.report(images[:1], tmp_path / "own.html").read_text(encoding="utf-8")
    given = explainer.report(images[:1], tmp_path / "given.html", photos=[torch.rand(3, 64, 64)], title="My <model>")
    text = given.read_text(encoding="utf-8")
    assert Page(own).sources[1] != Page(text).sources[1]
    assert "My &lt;model&gt;" in text


def test_a_whole_photograph_is_shown_with_a_frame(resnet, images, tmp_path):
    photo, box = Image.new("RGB", (300, 100), "grey"), Box(100, 0, 200, 100)
    path = fxlrp.compile(resnet, "conserving").report(
        images[:1], tmp_path / "whole.html", photos=[photo], boxes=[box], names=["wide.jpg"]
    )
    page = Page(path.read_text(encoding="utf-8"))
    (frame,) = page.all("div", **{"class": "frame"})
    assert frame["style"] == "left:33.33%;top:0.00%;width:33.33%;height:100.00%"
    shown, over = (Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in page.sources[1:3])
    assert shown.size == over.size == (600, 200)
    colour = np.asarray(over).astype(int).std(axis=2)
    assert colour[:, 210:390].max() > 20
    assert colour[:, :190].max() < 5 > colour[:, 410:].max()
    assert "wide.jpg" in page.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "a.txt"}, InputError, "must end in .html"),
        ({"path": "nowhere/a.html"}, InputError, "there is no folder"),
        ({"images": torch.rand(2, 3, 64)}, InputError, "a report is of pictures"),
        ({"images": torch.rand(2, 4, 64, 64)}, InputError, "a report is of pictures"),
        ({"photos": [torch.rand(3, 64, 64)]}, InputError, "1 photographs for 2 images"),
        ({"target": 9}, TargetError, "class"),
        ({"against": 9}, TargetError, "class"),
        ({"boxes": [None, None]}, InputError, "give photos= too"),
        ({"names": ["a"]}, InputError, "1 names for 2 images"),
    ],
)  # fmt: skip
def test_bad_input_is_told_and_nothing_is_written(options, error, message, resnet, images, tmp_path):
    given = {"images": images, "path": "a.html", **options}
    with pytest.raises(error, match=message):
        fxlrp.compile(resnet, "conserving").report(given.pop("images"), tmp_path / given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


# Notebooks --------------------------------------------------------------------------------------


def test_a_notebook_shows_an_explanation_as_pictures(resnet, images):
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
