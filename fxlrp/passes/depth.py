"""Depth: how far each node is from the input, in space, which layers are the classifier and which are activated."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import facts
from fxlrp.presets.preset import SPACELESS
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.operation import per_axis

_GATHERS = ("flatten", "reshape", "view", "mean", "sum", "amax")
"""Operations after which a linear layer sees no space any more; a convolution that follows shows that it was there."""

_READ_OFF = (Kind.POINTWISE, Kind.NORMALISATION, Kind.LINEAR, Kind.ROUTING, Kind.JOIN, Kind.GATE)
"""The kinds that may lie between the classifier and the output."""


class FindDepth(Pass):
    """Finds by how much space is reduced at each node, the layers that read the classes off, and the activated ones.

    The classifier is the last layer with weights, the one that reads the classes off the features; where branches are
    added or multiplied behind it, as in a cosine of two embeddings, the last of each. Sums and means behind it belong
    to it. Hidden layers of a head are none: evidence against a class is lost in the layer that weighs features for
    classes, and the signed sums of a hidden layer would amplify.

    A linear layer behind the place where space goes (a flatten, a mean, a pool, or an input without space) is coarser
    than any convolution: its stride is :data:`SPACELESS`.

    A layer is activated where its output goes into an activation or an elementwise product, as that of the first layer
    of a transformer's MLP does.

    Requires joins to be known.
    """

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(facts(node).kind is not Kind.JOIN or facts(node).join is not None, f"{node}: find joins first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        spaceless: dict[fx.Node, bool] = {}
        for node in module.graph.nodes:
            node_facts = facts(node)
            if node.op == "output" or not node_facts.signal:
                continue
            operands = [operand for _, operand in node_facts.operands]
            node_facts.stride = max((facts(operand).stride for operand in operands), default=1) * _reduction(node)
            spaceless[node] = _is_spaceless(node, all(spaceless.get(operand, True) for operand in operands))
            if spaceless[node] and node_facts.operation is not None and node_facts.operation.name == "linear":
                node_facts.stride = SPACELESS
        _mark_activated(module.graph)
        outputs: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
        if isinstance(outputs[0], fx.Node) and facts(outputs[0]).signal:
            _mark_classifier(outputs[0])
        return module


def _is_layer(node: fx.Node) -> bool:
    return facts(node).kind is Kind.LINEAR and facts(node).parametric


def _mark_activated(graph: fx.Graph) -> None:
    """Mark layers whose readers are all activations and gates; what only moves or scales a value is looked through."""
    activates: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        operation = None if node.op == "output" else facts(node).operation
        readers = [user for user in node.users if user.op == "output" or facts(user).signal]
        activated = bool(readers) and all(activates[user] for user in readers)
        if operation is None:
            activates[node] = activated and node.op != "output"
            continue
        kind = facts(node).kind
        looked_through = kind in (Kind.ROUTING, Kind.POINTWISE) or operation.name == "batch_norm"
        activates[node] = operation.activates or kind is Kind.GATE or (looked_through and activated)
        facts(node).activated = activated and _is_layer(node)


def _is_spaceless(node: fx.Node, before: bool) -> bool:
    """Whether no spatial axis is left at a node, as far as its operation says; ``before``: at its operands."""
    operation = facts(node).operation
    if operation is None:
        return before
    if operation.is_convolution:
        return False
    return before or operation.cuts or operation.name in _GATHERS or "pool" in operation.name


def _reduction(node: fx.Node) -> float:
    """By how much an operation reduces space, less than one where it enlarges it; one where only sizes would tell."""
    operation = facts(node).operation
    if operation is None:
        return 1
    name, arguments = operation.name, operation.arguments(node.args, node.kwargs)
    if name == "pixel_unshuffle":
        return float(arguments["downscale_factor"])
    if name == "pixel_shuffle":
        return 1 / arguments["upscale_factor"]
    if name.startswith("upsample"):
        return 1 / max(_numbers(arguments.get("scale_factors")), default=1)
    if name == "slice":  # one per axis: the first axis of space tells
        return max(_numbers(arguments.get("step")), default=1) if arguments.get("dim") == 2 else 1
    steps = max(_numbers(arguments.get("stride") or arguments.get("kernel_size")), default=1)
    if operation.is_convolution:
        return 1 / steps if "transpose" in name else steps
    return steps if "kernel_size" in arguments else 1


def _numbers(values: Any) -> list[float]:
    return [value for value in per_axis(values, 1) if isinstance(value, int | float)] if values else []


def _mark_classifier(output: fx.Node) -> None:
    waiting, seen = [output], set()
    while waiting:
        node = waiting.pop()
        node_facts = facts(node)
        if node in seen or not node_facts.signal:
            continue
        seen.add(node)
        node_facts.classifier = node_facts.kind is Kind.LINEAR
        if node_facts.kind in _READ_OFF and not _is_layer(node):
            waiting += [operand for _, operand in node_facts.operands]
