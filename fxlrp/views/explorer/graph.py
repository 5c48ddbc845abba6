"""The graphs as Model Explorer reads them: a picture's things and arrows, nested by module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxlrp.views.draw.flow import Flow, mark, weigh
from fxlrp.views.draw.picture import RELEVANCE, Picture, Role, Thing, Way, call_name
from fxlrp.views.draw.reading import picture_of
from fxlrp.views.readable import Readable

MODEL, RELEVANCE_GRAPH, BOTH = "model", "relevance", "model and relevance"

# Tints of Okabe and Ito's palette, as in the pictures.
_TINTS = {
    Role.LAYER: "#DCEEF9", Role.JOIN: "#F0E442", Role.RULE: "#FCEFD0", Role.SPLIT: "#F9D9C4", Role.START: "#F9D9C4",
    Role.RESULT: "#F9D9C4", Role.INPUT: "#CFEDE3", Role.OUTPUT: "#CFEDE3",
}  # fmt: skip


def pictures(explainer: Readable, flow: Flow | None) -> dict[str, Picture]:
    """Model and relevance side by side, and each alone, by the name of the graph; with shares where there is a flow."""
    parts = {BOTH: (True, True), MODEL: (True, False), RELEVANCE_GRAPH: (False, True)}
    found = {}
    for name, (forward, relevance) in parts.items():
        picture = picture_of(explainer.emitted, forward=forward, relevance=relevance, shapes=explainer.shapes)
        if flow is not None:
            mark(picture, flow)
            weigh(picture, flow)
        found[name] = picture
    return found


def collection(label: str, shown: Mapping[str, Picture]) -> dict[str, Any]:
    """The graphs of all pictures, under one label."""
    return {"label": label, "graphs": [_graph(name, picture) for name, picture in shown.items()]}


def _graph(name: str, picture: Picture) -> dict[str, Any]:
    both = name == BOTH
    rules: dict[str, list[str]] = {}
    for thing in picture.things.values():
        if thing.of is not None:
            rules.setdefault(thing.of, []).append(thing.name)
    nodes: dict[str, dict[str, Any]] = {
        thing.name: {
            "id": thing.name,
            "label": " ".join(thing.title.split()).replace("Σ", "sum"),  # there is no Σ in Model Explorer's font
            "namespace": namespace(thing, both=both),
            "attrs": _attributes(thing, rules.get(thing.name, []), picture.things),
            "incomingEdges": [],
            **({"style": {"backgroundColor": _TINTS[thing.role]}} if thing.role in _TINTS else {}),
        }
        for thing in picture.things.values()
    }
    for arrow in picture.arrows:
        start = picture.things[arrow.target].role is Role.START
        if arrow.way is not Way.OF or start:
            edges = nodes[arrow.target]["incomingEdges"]
            edge = {"sourceNodeId": arrow.source, "sourceNodeOutputId": "0", "targetNodeInputId": str(len(edges))}
            edges.append(edge)
    graph: dict[str, Any] = {"id": name, "nodes": list(nodes.values())}
    graph["groupNodeAttributes"] = _groups(picture, both=both)
    if picture.shares:
        overlays = {"edgeOverlaysDataListLeftPane": [_branches(picture, name)], "edgeOverlaysDataListRightPane": []}
        graph["tasksData"] = overlays
    return graph


def namespace(thing: Thing, *, both: bool) -> str:
    """The modules around a thing, from the outside in, one inside the other."""
    parts = [RELEVANCE_GRAPH if thing.role in RELEVANCE else MODEL] if both else []
    around = ""
    for call, (path, _) in zip(thing.origin.calls, thing.origin.modules, strict=True):
        parts.append(call_name(call, path).removeprefix(f"{around}.") if around else call_name(call, path))
        around = path
    return "/".join(part.replace("/", "_") for part in parts)


def _attributes(thing: Thing, rules: list[str], things: Mapping[str, Thing]) -> list[dict[str, Any]]:
    label = " · ".join(filter(None, (thing.title, *thing.detail.split("\n"), thing.shares)))
    texts = {"what": thing.role.value, "label": label, "told": "; ".join(thing.tooltip.split("\n"))}
    attributes: list[dict[str, Any]] = [{"key": key, "value": value} for key, value in texts.items() if value]
    if rules:
        attributes.append({"key": "its relevance", "value": {"type": "node_ids", "nodeIds": rules}})
    if thing.of in things:
        attributes.append({"key": "belongs to", "value": {"type": "node_ids", "nodeIds": [thing.of]}})
    return attributes


def _groups(picture: Picture, *, both: bool) -> dict[str, dict[str, str]]:
    """The classes of the modules, by namespace."""
    found: dict[str, dict[str, str]] = {}
    for thing in picture.things.values():
        parts = namespace(thing, both=both).split("/")
        for i, (path, kind) in enumerate(thing.origin.modules):
            found["/".join(parts[: i + 1 + both])] = {"module": path, "class": kind.__name__}
    return found


def _branches(picture: Picture, graph: str) -> dict[str, Any]:
    """Overlays of a graph's edges: where relevance takes the skip, and where the residual branch, in percent."""
    colors = {Way.RELEVANCE_SKIP: ("skips", "#0072B2"), Way.SKIP: ("skips", "#0072B2"),
              Way.RELEVANCE: ("relevance", "#D55E00"), Way.VALUE: ("relevance", "#D55E00"),
              Way.RESIDUAL: ("relevance", "#D55E00")}  # fmt: skip
    overlays: dict[str, dict[str, Any]] = {}
    for arrow, share in picture.shares.items():
        name, color = colors[arrow.way]
        overlay = overlays.setdefault(name, {"name": name, "edgeColor": color, "edges": [], "edgeWidth": 2})
        label = f"{100 * share:.1f} %"
        overlay["edges"].append({"sourceNodeId": arrow.source, "targetNodeId": arrow.target, "label": label})
    return {
        "name": "relevance that flows", "type": "edge_overlays", "graphName": graph,
        "overlays": list(overlays.values()),
    }  # fmt: skip
