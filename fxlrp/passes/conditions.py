"""Conditions: the relevance of some channels of a module, beside that of all.

The program is emitted with masks in it. This pass makes every step behind a mask linear in
relevance, so that parts add up to the whole. Nearly every step is. One that is not
(rescaling) acts on the part along the whole, for which the relevance without masks is
computed as well, as far as it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxlrp.common.errors import PatternError, RuleError
from fxlrp.passes.facts import KEY, Emitted, facts
from fxlrp.steps.batch_axis import Position, conditioned
from fxlrp.steps.declaration import Linear, facts_of


@dataclass(frozen=True)
class Point:
    """Where a condition is applied: the output of one call of a module, or a value of the graph.

    Attributes:
        name: the module, or the node of the graph.
        node: the forward node whose relevance is masked.
        position: where the batch is in it; ``None``: in front.
        fixed: whether that is known before the graph runs.
    """

    name: str
    node: fx.Node
    position: Position | None = None
    fixed: bool = True


def calls_of(graph: fx.Graph, name: str) -> list[set[fx.Node]]:
    """The nodes of each call of the module ``name``, with the parts of what it returns if that is a list.

    Where no module is called so, the one node of this name is meant.
    """
    calls: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        origin = facts(node).origin
        for (path, _), call in zip(origin.modules, origin.calls, strict=True):
            if path == name and facts(node).signal:
                calls.setdefault(call, set()).add(node)
    for inside in calls.values():
        for node in graph.nodes:
            # A list is taken apart by whoever called the module.
            if node.all_input_nodes and node.all_input_nodes[0] in inside and _is_part(node):
                inside.add(node)
    return list(calls.values()) or [{node} for node in graph.nodes if node.name == name and facts(node).signal]


def _is_part(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def check_modules(graph: fx.Graph, names: Iterable[str]) -> None:
    """Raise where a condition names no module, and no node that carries signal.

    Raises:
        PatternError: so it is.
    """
    modules = list(dict.fromkeys(path for node in graph.nodes for path, _ in facts(node).origin.modules))
    nodes = {node.name for node in graph.nodes if node.op != "output" and facts(node).signal}
    for name in names:
        if name not in modules and name not in nodes:
            shown = ", ".join(map(repr, modules[:8])) + (", …" if len(modules) > 8 else "")
            raise PatternError(
                f"the condition {name!r} is no module of this model that is in its graph; its modules are {shown} "
                "(dropout and identities leave no trace in the graph)"
            )


def check_points(name: str, calls: list[set[fx.Node]], points: Iterable[Point]) -> None:
    """Raise where relevance can be conditioned at no output of the module ``name``, or at several of one call.

    Raises:
        PatternError: so it is.
    """
    masked = [point.node for point in points if point.name == name]
    if not masked:
        raise PatternError(f"the condition {name!r}: no relevance passes the output of this module")
    for inside in calls:
        several = [node.name for node in reversed(masked) if node in inside]
        if len(several) > 1:
            raise PatternError(
                f"the condition {name!r}: relevance passes several outputs of this module ({', '.join(several)}); "
                "name a module inside it that has one"
            )


def write_parts(graph: fx.Graph, beginning: fx.Node) -> None:
    """Let every step behind a mask act on a part of the relevance.

    Args:
        graph: an emitted graph, masks in it; changed in place. What it no longer needs stays, as dead code.
        beginning: the relevance that enters.

    Raises:
        RuleError: a step is not known to be linear, and does not say how it acts on a part.
    """
    relevance = {beginning}
    whole: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        depends = [source for source in node.all_input_nodes if source in relevance]
        if not depends or node.op == "output":
            continue
        step = facts_of(node.target, node.args)
        if step.linear == "none":
            continue
        relevance.add(node)
        if node.target is conditioned:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            whole[node] = whole.get(source, source)
        elif any(source in whole for source in depends):
            whole[node] = _copy_for_the_whole(graph, node, whole)
            if step.along is not None:
                relevance.add(_act_along(graph, node, step.along, whole))
            elif step.linear is None or not _is_linear(node, step.linear, relevance):
                raise RuleError(_not_linear(node))


def _copy_for_the_whole(graph: fx.Graph, node: fx.Node, whole: dict[fx.Node, fx.Node]) -> fx.Node:
    with graph.inserting_before(node):
        copy = graph.node_copy(node, lambda source: whole.get(source, source))
    copy._rename(f"whole_{node.name}")
    emitted = node.meta[KEY]
    copy.meta[KEY] = Emitted(emitted.node, emitted.rule, "step")
    return copy


def _act_along(graph: fx.Graph, node: fx.Node, part: Any, whole: dict[fx.Node, fx.Node]) -> fx.Node:
    """Put ``part`` in the place of a step that is not linear."""
    arguments = fx.node.map_arg(node.args, lambda source: whole.get(source, source))
    with graph.inserting_after(node):
        new = graph.call_function(part, node.args, {**node.kwargs, "whole": arguments})
    new.meta[KEY] = node.meta[KEY]
    node.replace_all_uses_with(new)
    whole[new] = whole[node]
    new._rename(f"{node.name}_part")
    return new


def _is_linear(node: fx.Node, linear: Linear, relevance: set[fx.Node]) -> bool:
    """Whether a step that is ``linear`` is so in this call, by which of its arguments are relevance."""
    is_relevance: list[bool] = []  # of each tensor in each argument
    in_first = 0
    for i, argument in enumerate((*node.args, *node.kwargs.values())):
        fx.node.map_arg(argument, lambda source: is_relevance.append(source in relevance))
        in_first = len(is_relevance) if i == 0 else in_first
    if linear == "first":
        return not any(is_relevance[in_first:])
    if linear == "either":
        return is_relevance.count(True) == 1
    # Jointly: a number, or a tensor that is no relevance, must not be added.
    numbers = [a for a in node.args if isinstance(a, int | float) and a != 0]
    return all(is_relevance) and not numbers


def _not_linear(node: fx.Node) -> str:
    emitted = node.meta[KEY]
    name = getattr(node.target, "__name__", str(node.target))
    return (
        f"conditions need steps that are linear in relevance, and {name} in {emitted.rule} at {emitted.node} is not "
        "known to be: declare it where the step is defined, @fxlrp.rules.primitives.primitive(linear=...), or say with "
        "fxlrp.rules.primitives.along how it acts on a part of the relevance"
    )
