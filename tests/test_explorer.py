"""Graphs for Model Explorer: nested by module, linked, with what there is to say of each node."""

import json

import pytest
import torch
from torchvision import models

import fxlrp
from fxlrp.errors import DrawError, MissingExtraError
from fxlrp.explorer import explore, write_graph
from fxlrp.views.explorer.graph import BOTH, MODEL, RELEVANCE_GRAPH


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    return fxlrp.compile(models.resnet18(num_classes=4).eval(), "conserving")


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(explainer, images, tmp_path_factory):
    paths = write_graph(explainer, tmp_path_factory.mktemp("graph") / "net.json", images)
    return {path.name: json.loads(path.read_text()) for path in paths}


def graphs(written):
    return {graph["id"]: graph for graph in written["net.json"]["graphs"]}


def test_there_are_three_graphs_whose_edges_lead_to_nodes(written):
    found = graphs(written)
    assert set(found) == {BOTH, MODEL, RELEVANCE_GRAPH}
    for graph in found.values():
        names = [node["id"] for node in graph["nodes"]]
        assert len(names) == len(set(names))
        for node in graph["nodes"]:
            assert all(edge["sourceNodeId"] in names for edge in node["incomingEdges"])
    assert len(found[BOTH]["nodes"]) == len(found[MODEL]["nodes"]) + len(found[RELEVANCE_GRAPH]["nodes"])


def test_nodes_lie_in_their_modules(written):
    nodes = {node["id"]: node for node in graphs(written)[BOTH]["nodes"]}
    assert nodes["layer1_0_conv1"]["namespace"].startswith("model/layer1/0")
    assert nodes["ZPlus of layer1_0_conv1"]["namespace"].startswith("relevance/layer1/0")
    groups = graphs(written)[BOTH]["groupNodeAttributes"]
    assert groups["model/layer1/0"] == {"module": "layer1.0", "class": "BasicBlock"}


def test_an_operation_and_its_rule_are_linked(written):
    nodes = {node["id"]: node for node in graphs(written)[BOTH]["nodes"]}

    def linked(name, key):
        return next(a["value"]["nodeIds"] for a in nodes[name]["attrs"] if a["key"] == key)

    assert linked("layer1_0_conv1", "its relevance") == ["ZPlus of layer1_0_conv1"]
    assert linked("ZPlus of layer1_0_conv1", "belongs to") == ["layer1_0_conv1"]


def test_overlays_tell_what_the_ledger_has(written, explainer, images):
    ledger = explainer.ledger(images)
    rows = {row.node: row for row in ledger}
    join = explainer.joins[0]
    start = float(ledger.start)
    relevance = written["net.relevance_%.json"][RELEVANCE_GRAPH]["results"]
    assert relevance["ZPlus of fc"]["value"] == pytest.approx(100 * float(rows["fc"].received) / start)
    skip = written["net.skip_%.json"][MODEL]["results"]
    assert len(skip) == len(explainer.joins)
    share = float(rows[join.name].to[join.skip] / rows[join.name].received)
    assert skip[join.name]["value"] == pytest.approx(100 * share, abs=1e-3)
    assert not any(result["value"] for result in written["net.absorbed_%.json"][BOTH]["results"].values())


def test_edges_are_overlaid_by_what_flows_there(written, explainer, images):
    found = graphs(written)
    for name, graph in found.items():
        (data,) = graph["tasksData"]["edgeOverlaysDataListLeftPane"]
        assert data["graphName"] == name  # else every graph offers those of all
        nodes = {node["id"] for node in graph["nodes"]}
        edges = [edge for overlay in data["overlays"] for edge in overlay["edges"]]
        assert edges
        assert all({edge["sourceNodeId"], edge["targetNodeId"]} <= nodes for edge in edges)
        assert all(node["label"].isascii() for node in graph["nodes"])  # Model Explorer's font has no more
    rows, join = {row.node: row for row in explainer.ledger(images)}, explainer.joins[0]
    share = float(rows[join.name].to[join.skip] / explainer(images).start)
    overlays = found[MODEL]["tasksData"]["edgeOverlaysDataListLeftPane"][0]["overlays"]
    (skips,) = (overlay["edges"] for overlay in overlays if overlay["name"] == "skips")
    assert {"sourceNodeId": join.skip, "targetNodeId": join.name, "label": f"{100 * share:.1f} %"} in skips


def test_times_are_of_both_the_model_and_its_relevance(written, explainer, images):
    both = written["net.milliseconds.json"][BOTH]["results"]
    assert both["layer1_0_conv1"]["value"] > 0
    assert both["ZPlus of layer1_0_conv1"]["value"] > 0
    times = explainer.node_times(images)
    assert {step.node for step in times if not step.relevance} >= {row.node for row in explainer.ledger(images)}


def test_without_images_the_graph_is_alone(explainer, tmp_path):
    assert [path.name for path in write_graph(explainer, tmp_path / "net.json")] == ["net.json"]


@pytest.mark.parametrize("path", ["net.svg", "nowhere/net.json"])
def test_a_path_that_will_not_do_is_an_error(path, explainer, images, tmp_path):
    with pytest.raises(DrawError, match=r"is written as a \.json file"):
        write_graph(explainer, tmp_path / path, images)


def test_without_model_explorer_the_extra_is_named(explainer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "model_explorer", None)
    with pytest.raises(MissingExtraError, match="explorer"):
        explore(explainer)
