"""What there is to say of each node, as colours: relevance, share of the skip, absorbed, milliseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fxlrp.runtime.timing import Step
from fxlrp.views.draw.flow import Flow
from fxlrp.views.draw.picture import RELEVANCE, Picture, Role, Thing

_TIME, _ABSORBED, _SKIP, _RELEVANCE = "milliseconds", "absorbed %", "skip %", "relevance %"

_NAMES = (_TIME, _ABSORBED, _SKIP, _RELEVANCE)  # Model Explorer shows the last of them first.

_GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d55e00"}]


def overlays(shown: Mapping[str, Picture], flow: Flow, times: dict[Step, float]) -> dict[str, dict[str, Any]]:
    """By name, the data of all graphs: for each node a value."""
    found: dict[str, dict[str, Any]] = {name: {} for name in _NAMES}
    for graph, picture in shown.items():
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for thing in picture.things.values():
            for name, value in _values(thing, flow, times).items():
                values[name][thing.name] = value
        for name, results in values.items():
            data = {"results": {node: {"value": value} for node, value in results.items()}, "gradient": _GRADIENT}
            found[name][graph] = data
    return {name: data for name, data in found.items() if data}


def _values(thing: Thing, flow: Flow, times: dict[Step, float]) -> dict[str, float]:
    row = flow.row(thing.node)
    values = {}
    if row is not None:
        values[_RELEVANCE] = 100 * flow.share(row.received)
        values[_ABSORBED] = 100 * flow.share(row.absorbed)
        received = flow.share(row.received)
        if thing.role in (Role.JOIN, Role.SPLIT) and received:
            skip = row.to.get(thing.branches[0])
            values[_SKIP] = 0.0 if skip is None else 100 * flow.share(skip) / received
    step = Step(thing.node, thing.role in RELEVANCE)
    if step in times:
        values[_TIME] = times[step]
    return {name: round(value, 6) for name, value in values.items()}
