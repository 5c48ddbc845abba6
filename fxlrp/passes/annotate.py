"""Annotate: what is known of every forward node."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import fx

from fxlrp.common.errors import CaptureError
from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import Facts, facts, has_facts
from fxlrp.passes.lookups import makes_integers, trail
from fxlrp.passes.shifts import shift_of
from fxlrp.vocabulary import VOCABULARY, Bound, Kind, Operation, Sign


class Annotate(Pass):
    """Finds signal, kind, operands, sign, padding, bounds, gates, values and first layers.

    Requires a canonical graph; ensures that every node that carries signal has a kind
    and operands.
    """

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(has_facts(node), f"{node} has no origin: canonicalise first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in module.graph.nodes:
            annotate(node)
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            node_facts = facts(node)
            begins = node_facts.kind is Kind.INPUT or node.op != "call_function"
            fed = begins or bool(node_facts.operands)
            check(not node_facts.signal or fed, f"{node} carries signal but has no operand")


def annotate(node: fx.Node) -> None:
    """Find what is known of a node from its operands, which are annotated."""
    node_facts = facts(node)
    if node.op == "placeholder":
        node_facts.signal, node_facts.kind = not node_facts.integer, Kind.INPUT
        return
    node_facts.operation = VOCABULARY.canonical(node.target) if node.op == "call_function" else None
    if node_facts.operation is not None and node_facts.operation.kind is Kind.INPUT:
        node_facts.source = _looked_up(node, node_facts.operation)
        if node_facts.source is not None:
            # A lookup is a layer: what follows it is not the first, whose input does not matter.
            node_facts.signal, node_facts.kind, node_facts.layers = True, Kind.INPUT, True
        return
    node_facts.operands = _signal_operands(node, node_facts.operation)
    node_facts.signal = bool(node_facts.operands)
    if not node_facts.signal:
        return
    sources = [facts(operand) for _, operand in node_facts.operands]
    if node.target is getitem:
        node_facts.kind = Kind.ROUTING
        source = sources[0]
        node_facts.nonnegative, node_facts.padded, node_facts.layers = source.nonnegative, source.padded, source.layers
        node_facts.filled, node_facts.bound = source.filled, source.bound
        return
    operation = node_facts.operation
    assert operation is not None  # the canonical form holds no other signal
    arguments = operation.arguments(node.args, node.kwargs)
    if operation.values == "input" and "input" not in dict(node_facts.operands):
        raise CaptureError(
            f"{node_facts.origin.path or node.name}: the weight of {operation.name} depends on the model's input, and "
            f"what it is applied to does not ({node_facts.origin.source}); items of a batch would depend on each other"
        )
    node_facts.kind = operation.several if operation.several and len(node_facts.operands) > 1 else operation.kind
    node_facts.nonnegative = _nonnegative(operation, arguments)
    node_facts.bound = _bound(node_facts, arguments)
    node_facts.padded = _padded(node, node_facts, sources)
    node_facts.filled = node_facts.padded and _filled(node_facts, sources, arguments)
    if node_facts.kind is Kind.GATE:
        node_facts.gate = _gate(node_facts)
    if node_facts.kind is Kind.PRODUCT:
        node_facts.values = _values(node_facts)
    below = any(source.layers for source in sources)
    layer = operation.parametric
    node_facts.parametric = layer(arguments) if callable(layer) else layer
    node_facts.first = node_facts.parametric and not below
    node_facts.layers = node_facts.parametric or below


def _signal_operands(node: fx.Node, operation: Operation | None) -> tuple[tuple[str, fx.Node], ...]:
    """The arguments that carry signal, but for a shift; for a list argument, each of its entries."""
    if node.target is getitem:
        source = node.args[0]
        chosen = VOCABULARY.called_by(source)
        is_place = chosen is not None and chosen.chooses and node.args[1] != 0
        carries = isinstance(source, fx.Node) and facts(source).signal and not is_place
        return (("self", source),) if carries else ()  # type: ignore[return-value]
    if operation is None:
        return ()
    arguments = operation.arguments(node.args, node.kwargs)
    found = []
    for name in operation.operand_names():
        value = arguments[name]
        for i, entry in enumerate(value if isinstance(value, list | tuple) else [value]):
            if isinstance(entry, fx.Node) and facts(entry).signal:
                found.append((f"{name}[{i}]" if isinstance(value, list | tuple) else name, entry))
    if len(found) > 1 and (shift := shift_of(node)) is not None:
        found = [(name, entry) for name, entry in found if entry is not shift]
    return tuple(found)


def _nonnegative(operation: Operation, arguments: dict[str, Any]) -> bool:
    sign = operation.sign(arguments) if callable(operation.sign) else operation.sign
    if sign is not Sign.KEEPS:
        return sign is Sign.NONNEGATIVE
    for name in operation.operand_names():
        value = arguments[name]
        for entry in value if isinstance(value, list | tuple) else [value]:
            if isinstance(entry, fx.Node):
                if not facts(entry).nonnegative:
                    return False
            elif not isinstance(entry, int | float) or entry < 0:
                return False
    return True


def _padded(node: fx.Node, node_facts: Facts, sources: list[Facts]) -> bool:
    """Whether a part of the value carries no signal: what ``support`` has to know at run time."""
    if node_facts.kind is Kind.ROUTING:
        assert node_facts.operation is not None
        return node_facts.operation.pads or _joins_constants(node) or any(source.padded for source in sources)
    if node_facts.kind is Kind.JOIN:
        return all(source.padded for source in sources)
    return node_facts.kind in (Kind.POINTWISE, Kind.NORMALISATION, Kind.GATE) and any(s.padded for s in sources)


ZERO_AT_ZERO = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh", "abs",
    "neg", "mul", "div", "square", "sqrt", "erf",
})  # fmt: skip
"""Pointwise operations that leave zero padding zero."""


def _filled(node_facts: Facts, sources: list[Facts], arguments: dict[str, Any]) -> bool:
    """Whether padding may hold other values than zero."""
    if any(source.filled for source in sources):
        return True
    assert node_facts.operation is not None
    if node_facts.kind in (Kind.POINTWISE, Kind.NORMALISATION):
        return node_facts.operation.name not in ZERO_AT_ZERO
    return node_facts.operation.pads and arguments["value"] != 0


def _joins_constants(node: fx.Node) -> bool:
    """Whether it concatenates or stacks signal with constants."""
    tensors = node.args[0] if node.args else None
    return isinstance(tensors, list | tuple) and not all(
        isinstance(tensor, fx.Node) and facts(tensor).signal for tensor in tensors
    )


def _gate(node_facts: Facts) -> int | None:
    """Which of two factors is the gate: a divisor, or the better bounded one."""
    assert node_facts.operation is not None
    if node_facts.operation.name == "div":
        return 1
    left, right = (facts(operand).bound.value for _, operand in node_facts.operands)
    if left == right:
        return None
    return 0 if left > right else 1


def _values(node_facts: Facts) -> int | None:
    """Which factor of a product holds the values: as the operation says, or the one that is no weight.

    Weights are bounded (an attention), or else at least never negative (kernels of linear attention).
    """
    assert node_facts.operation is not None
    if node_facts.operation.values is not None:
        return next((i for i, (name, _) in enumerate(node_facts.operands) if name == node_facts.operation.values), None)
    left, right = (facts(operand) for _, operand in node_facts.operands)
    ranks = [(side.bound is Bound.GATE, side.nonnegative) for side in (left, right)]
    if ranks[0] == ranks[1]:
        return None
    return 1 if ranks[0] > ranks[1] else 0


def _bound(node_facts: Facts, arguments: dict[str, Any]) -> Bound:
    """How a result is bounded, seen through what keeps bounds."""
    assert node_facts.operation is not None
    bound = node_facts.operation.bound
    bound = bound(arguments) if callable(bound) else bound
    least = min((facts(operand).bound for _, operand in node_facts.operands), key=lambda b: b.value)
    if bound is Bound.KEEPS:
        return least
    if node_facts.kind is Kind.POINTWISE and least is Bound.REDUCED:
        return max(bound, least, key=lambda b: b.value)  # its root, its inverse: a statistic still
    return bound


def _looked_up(node: fx.Node, operation: Operation) -> fx.Node | None:
    """The input that a lookup's indices come from, of integers, or of numbers of which some are cast to integers."""
    steps = list(trail(operation.arguments(node.args, node.kwargs)[operation.operand_names()[0]]))
    return steps[-1] if steps and (facts(steps[-1]).integer or any(map(makes_integers, steps))) else None
