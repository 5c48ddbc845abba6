"""The picture shows every operation, rule, split and join once, in its module, and can be rendered."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import fxlrp
from fxlrp.draw import DrawError, dot_source, draw
from fxlrp.errors import FxlrpError, MissingExtraError
from fxlrp.passes.facts import Facts
from fxlrp.views.draw.dot import quote
from fxlrp.vocabulary import Kind

VALUE, SKIP, RELEVANCE = "#333333", "#0072B2", "#D55E00"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not installed")


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.down = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn(self.conv1(x)))) + self.down(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.blocks(F.max_pool2d(F.relu(self.stem(x)), 2)).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gate = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc((x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = F.relu(self.c(torch.cat([a, b], 1)))
        return self.fc(torch.cat([a, b, c], 1).mean((2, 3)))


class Twice(nn.Module):
    """A module that is called twice, and a module that is named like what the picture adds."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.start = nn.Linear(4, 4)
        self.output = nn.Linear(4, 3)

    def forward(self, x):
        return self.output(self.shared(self.start(self.shared(x))))


class Read:
    """Things, arrows and clusters of DOT text, as fxlrp writes it: a statement a line."""

    def __init__(self, text):
        self.things, self.arrows, self.around, self.labels = {}, [], {}, {}
        open_clusters = []
        for line in text.splitlines():
            name = r'"((?:[^"\\]|\\.)*)"'
            if match := re.match(rf"\s*subgraph {name} {{$", line):
                open_clusters.append(match[1])
            elif line.strip() == "}" and open_clusters:
                open_clusters.pop()
            elif "legend" in "".join(open_clusters):
                continue
            elif match := re.match(rf"\s*{name} -> {name} \[(.*)\];$", line):
                attributes = dict(re.findall(rf"(\w+)={name}", match[3]))
                ends = (match[1], match[2]) if attributes.get("dir") != "back" else (match[2], match[1])
                self.arrows.append((*ends, attributes))
            elif match := re.match(rf"\s*{name} \[(.*)\];$", line):
                assert match[1] not in self.things, f"{match[1]} is there twice"
                self.things[match[1]] = dict(re.findall(rf"(\w+)={name}", match[2]))
                self.around[match[1]] = [c.removeprefix("cluster ") for c in open_clusters]
            elif match := re.match(rf"\s*graph \[.*\blabel={name}", line):
                self.labels[open_clusters[-1].removeprefix("cluster ")] = match[1]

    def flow(self, color):
        return {(a, b) for a, b, attributes in self.arrows if attributes["color"] == color}

    def readers(self, name):
        return {b for a, b in self.flow(RELEVANCE) if a == name}


def compiled(model, **options):
    return fxlrp.compile(model.eval(), **{"preset": "conserving", **options})


@pytest.fixture(scope="module")
def residual():
    explainer = compiled(Residual())
    return explainer, Read(explainer.dot)


def forward_nodes(explainer):
    facts = {node.name: node.meta.get("fxlrp") for node in explainer.graph.nodes}
    return {name: known for name, known in facts.items() if isinstance(known, Facts) and known.signal}


@pytest.mark.parametrize(
    "model", [Residual(), Gated(), Dense(), Twice(), models.resnet18()], ids=lambda m: type(m).__name__
)
def test_every_forward_operation_is_there_once_and_no_parameter_is(model):
    explainer = compiled(model)
    picture = Read(dot_source(explainer, "forward"))
    assert set(picture.things) == {*forward_nodes(explainer), "the output"}
    operands = {(o.name, name) for name, known in forward_nodes(explainer).items() for _, o in known.operands}
    flows = picture.flow(VALUE) | picture.flow(SKIP)
    assert {arrow for arrow in flows if arrow[1] != "the output"} == operands


@pytest.mark.parametrize("model", [Residual(), Dense(), Twice(), models.resnet18()], ids=lambda m: type(m).__name__)
def test_every_rule_and_every_split_is_there_once(model):
    explainer = compiled(model)
    picture = Read(explainer.dot)
    passing = {Kind.INPUT, Kind.POINTWISE, Kind.NORMALISATION, Kind.ROUTING}
    expected = {
        f"{type(known.rule).__name__} of {name}"
        for name, known in forward_nodes(explainer).items()
        if known.kind not in passing
    }
    assert {name for name in picture.things if re.match(r"(\w+Plus|\w+Average|\w+Split) of ", name)} == expected
    assert len([name for name in picture.things if "RatioSplit" in name]) == len(explainer.joins)
    links = {(a, b) for a, b, attributes in picture.arrows if attributes.get("style") == "dotted"}
    assert {(name.rpartition(" of ")[2], name) for name in expected} <= links


def test_joins_say_their_kind_and_draw_the_skip_apart_from_the_residual(residual):
    explainer, picture = residual
    assert sorted(join.kind for join in explainer.joins) == ["identity", "projection"]
    for join in explainer.joins:
        assert picture.things[join.name]["label"] == f"add\\n{join.kind}"
        assert picture.things[join.name]["shape"] == "hexagon"
        assert (join.skip, join.name) in picture.flow(SKIP)
        assert (join.residual, join.name) in picture.flow(VALUE)


def test_relevance_runs_from_the_output_back_to_the_input(residual):
    _, picture = residual
    assert picture.readers("the start") == {"ZPlus of fc"}
    assert picture.readers("ZPlus of fc") == {"ZPlus of mean"}
    assert picture.readers("ZPlus of mean") == {"RatioSplit of blocks_1_add"}
    assert picture.readers("RatioSplit of blocks_1_add") == {"ZPlus of blocks_1_conv2", "ZPlus of blocks_1_down"}
    assert picture.readers("ZPlus of blocks_1_down") == picture.readers("ZPlus of blocks_1_conv1")
    assert picture.readers("WindowAverage of max_pool2d") == {"WPlus of stem"}
    assert picture.readers("WPlus of stem") == {"relevance of x"}


def test_a_sum_stands_where_a_value_has_several_readers(residual):
    _, picture = residual
    sums = {name for name in picture.things if name.startswith("sum of ")}
    assert sums == {"sum of max_pool2d", "sum of blocks_0_relu_1"}
    assert {a for a, b in picture.flow(RELEVANCE) if b == "sum of max_pool2d"} == {
        "ZPlus of blocks_0_conv1", "RatioSplit of blocks_0_add",
    }  # fmt: skip
    assert picture.readers("sum of max_pool2d") == {"WindowAverage of max_pool2d"}


def test_what_a_split_hands_the_skip_is_drawn_like_the_skip(residual):
    _, picture = residual
    dashed = {(a, b) for a, b, x in picture.arrows if x["color"] == RELEVANCE and x.get("style") == "dashed"}
    assert dashed == {
        ("RatioSplit of blocks_1_add", "ZPlus of blocks_1_down"),
        ("RatioSplit of blocks_0_add", "sum of max_pool2d"),
    }


def test_three_readers_make_one_sum_and_a_cat_hands_each_part_its_own():
    picture = Read(compiled(Dense()).dot)
    assert {a for a, b in picture.flow(RELEVANCE) if b == "sum of relu"} == {
        "ZPlus of b", "routing of cat", "routing of cat_1",
    }  # fmt: skip
    assert picture.readers("routing of cat_1") == {"sum of relu", "sum of relu_1", "ZPlus of c"}
    assert picture.readers("sum of relu_1") == {"ZPlus of b"}


def test_a_gate_receives_nothing():
    picture = Read(compiled(Gated()).dot)
    assert "ZPlus of gate" not in picture.things
    assert picture.readers("ToSignal of mul") == {"WPlus of conv"}
    assert picture.things["mul"]["label"] == "mul\\ngate"


def test_an_identity_skip_that_receives_nothing_has_no_arrow():
    explainer = compiled(Residual(), identity_skips=False)
    picture = Read(explainer.dot)
    assert picture.readers("ResidualOnly of blocks_0_add") == {"ZPlus of blocks_0_conv2"}
    assert "sum of max_pool2d" not in picture.things


def test_checkpoints_are_shown():
    picture = Read(compiled(Residual(), checkpoints=("blocks.1",)).dot)
    sources = {a for a, b in picture.flow(RELEVANCE) if b == "checkpoint blocks.1"}
    assert sources == {"ZPlus of blocks_1_conv1", "ZPlus of blocks_1_down"}


def test_clusters_follow_the_modules(residual):
    _, picture = residual
    assert picture.labels == {
        "blocks": "blocks  Sequential",
        "blocks.0": "blocks.0  Block",
        "blocks.1": "blocks.1  Block",
    }
    for name in ("blocks_1_conv1", "blocks_1_add", "ZPlus of blocks_1_conv1", "RatioSplit of blocks_1_add"):
        assert picture.around[name] == ["blocks", "blocks.1"]
    assert picture.around["stem"] == picture.around["the start"] == []
    assert picture.things["blocks_1_conv1"]["label"] == "conv1\\nconv2d"


def test_each_call_of_a_module_has_its_own_cluster():
    picture = Read(compiled(Twice()).dot)
    assert set(picture.labels) == {"shared", "shared@1"}
    assert picture.around["start"] == [] != picture.around["shared_2"]


def test_a_tooltip_tells_module_operation_and_rule(residual):
    _, picture = residual
    tooltip = picture.things["blocks_1_conv1"]["tooltip"]
    assert tooltip.startswith("blocks.1.conv1\\naten.conv2d.default (linear)\\nrule: ZPlus(")
    assert "preset conserving" in picture.things["ZPlus of blocks_1_conv1"]["tooltip"]


@pytest.mark.parametrize("view", ["forward", "relevance"])
def test_a_view_shows_one_part(residual, view):
    explainer, both = residual
    picture = Read(dot_source(explainer, view))
    of_relevance = {name for name in both.things if " " in name and name != "the output"}
    assert set(picture.things) == (of_relevance if view == "relevance" else set(both.things) - of_relevance)
    assert not [1 for *_, attributes in picture.arrows if "dir" in attributes]


def test_relevance_alone_names_the_operations(residual):
    picture = Read(dot_source(residual[0], "relevance"))
    assert picture.things["ZPlus of blocks_1_conv1"]["label"] == "conv1\\nZPlus"
    assert picture.around["ZPlus of blocks_1_conv1"] == ["blocks", "blocks.1"]


def test_depth_closes_modules():
    explainer = compiled(models.resnet18())
    blocks = Read(dot_source(explainer, depth=2))
    assert blocks.around["module of layer2.0"] == blocks.around["rules of layer2.0"] == ["layer2"]
    assert blocks.things["module of layer2.0"]["label"] == "0\\nBasicBlock, 1 join"
    assert blocks.things["rules of layer2.0"]["label"] == "RatioSplit\\n3 × ZPlus"
    assert ("module of layer1.1", "module of layer2.0") in blocks.flow(VALUE)
    assert blocks.readers("rules of layer2.0") == {"rules of layer1.1"}
    assert not [name for name in blocks.things if name.startswith("sum of")]
    layers = Read(dot_source(explainer, depth=1))
    assert {name for name in layers.things if name.startswith("module of")} == {
        f"module of layer{i}" for i in range(1, 5)
    }
    assert layers.things["rules of layer1"]["label"] == "2 × RatioSplit\\n4 × ZPlus"
    assert "conv1" in layers.things
    assert dot_source(explainer, depth=9) == dot_source(explainer)


def test_a_join_outside_the_closed_modules_stays_visible():
    explainer = compiled(models.mobilenet_v3_small())
    picture = Read(dot_source(explainer, depth=3))
    (join,) = [join for join in explainer.joins if join.path == "features.3"]
    assert picture.things[join.name]["label"] == "add\\nidentity"
    assert ("module of features.2.block", join.name) in picture.flow(SKIP)
    value = next(name for name in picture.things if name.startswith("sum of") and "features_2" in name)
    assert {a for a, b in picture.flow(RELEVANCE) if b == value} == {
        "rules of features.3.block",
        f"RatioSplit of {join.name}",
    }
    assert picture.readers(value) == {"rules of features.2.block"}


def test_the_legend_explains_what_occurs_and_nothing_else():
    residual, plain = compiled(Residual()).dot, compiled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).dot
    for meaning in ("a join of two branches", "the skip of a join", "several readers"):
        assert meaning in residual
        assert meaning not in plain
    assert "the rule of an operation" in plain


def test_the_text_is_the_same_each_time(residual):
    assert residual[0].dot == residual[0].dot


@pytest.mark.parametrize(
    ("text", "expected"),
    [('a"b', '"a\\"b"'), ("a\\nb", '"a\\\\nb"'), ("a\nb", '"a\\nb"'), ("<b>&lt;", '"<b>&amp;lt;"'), ("é→", '"é→"')],
)
def test_text_is_escaped(text, expected):
    assert quote(text) == expected


def odd_model():
    model = nn.Sequential()
    model.add_module("a<b>&lt;", nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model.add_module("new é→", nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model.add_module("graph; } {", nn.Linear(3, 2))
    return model


def test_odd_module_names_are_shown_as_they_are():
    picture = Read(compiled(odd_model()).dot)
    assert set(picture.labels.values()) == {"a<b>&amp;lt;  Sequential", "new é→  Sequential"}
    assert "graph; } {\\nlinear" in {thing.get("label") for thing in picture.things.values()}


@needs_dot
@pytest.mark.parametrize("model", [Residual(), Gated(), Dense(), Twice(), odd_model()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("view", ["both", "forward", "relevance"])
@pytest.mark.parametrize("depth", [None, 1])
def test_graphviz_reads_the_text(model, view, depth):
    text = dot_source(compiled(model), view, depth=depth)
    canonical = subprocess.run(["dot", "-Tcanon"], input=text.encode(), capture_output=True, check=True)
    assert not canonical.stderr
    names = Counter(re.findall(r"^\s*(\"(?:[^\"\\]|\\.)*\"|\w+)\s+\[", canonical.stdout.decode(), re.MULTILINE))
    for name in Read(text).things:
        assert names[f'"{name}"'] + names[name] == 1


@needs_dot
@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("PDF", b"%PDF"), ("gv", b"digraph")]
)
def test_a_file_is_written_in_the_format_of_its_suffix(residual, tmp_path, suffix, start):
    pytest.importorskip("graphviz")
    path = tmp_path / f"graph.{suffix}"
    assert residual[0].draw(path) == path
    assert path.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [path.name]


@needs_dot
def test_an_svg_holds_names_and_tooltips(residual, tmp_path):
    pytest.importorskip("graphviz")
    text = residual[0].draw(str(tmp_path / "graph.svg")).read_text()
    assert "RatioSplit" in text
    assert 'xlink:title="blocks.1.conv1' in text


def test_dot_text_needs_neither_package_nor_program(residual, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert residual[0].draw(tmp_path / "graph.dot").read_text() == residual[0].dot


def test_a_missing_program_is_told_and_nothing_is_written(residual, tmp_path, monkeypatch):
    pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DrawError, match="apt-get install graphviz") as error:
        residual[0].draw(tmp_path / "graph.svg")
    assert "explainer.dot" in str(error.value)
    assert not os.listdir(tmp_path)


def test_a_missing_package_names_its_extra(residual, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(MissingExtraError, match=r"fxlrp\[draw\]"):
        residual[0].draw(tmp_path / "graph.svg")
    assert not os.listdir(tmp_path)


def test_what_cannot_be_drawn_is_told_before_any_work(tmp_path):
    with pytest.raises(DrawError, match=r"\.svg, \.png"):
        draw(None, tmp_path / "graph.jpeg2000")
    with pytest.raises(DrawError, match="suffix"):
        draw(None, tmp_path / "graph")
    with pytest.raises(DrawError, match="no folder"):
        draw(None, tmp_path / "missing" / "graph.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(DrawError, match="is a folder"):
        draw(None, tmp_path / "folder.svg")
    with pytest.raises(DrawError, match="'both', 'forward', 'relevance'"):
        draw(None, tmp_path / "graph.svg", "backward")
    for depth in (0, -1, True, 1.5):
        with pytest.raises(DrawError, match="depth="):
            draw(None, tmp_path / "graph.svg", depth=depth)
    assert issubclass(DrawError, FxlrpError)


def test_a_failed_write_leaves_the_old_file(residual, tmp_path, monkeypatch):
    path = tmp_path / "graph.dot"
    path.write_text("old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        residual[0].draw(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["graph.dot"]
