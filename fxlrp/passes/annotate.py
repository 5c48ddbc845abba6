"""Annotate: what is known of every forward node."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import fx

from fxlrp.common.errors import CaptureError
from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import Facts, facts, has_facts
from fxlrp.passes.signal import is_moved
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
            _annotate(node, facts(node))
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            known = facts(node)
            begins = known.kind is Kind.INPUT or node.op != "call_function"
            check(not known.signal or begins or bool(known.operands), f"{node} carries signal but has no operand")


def _annotate(node: fx.Node, known: Facts) -> None:
    if node.op == "placeholder":
        known.signal, known.kind = not known.integer, Kind.INPUT
        return
    known.operation = VOCABULARY.canonical(node.target) if node.op == "call_function" else None
    if known.operation is not None and known.operation.kind is Kind.INPUT:
        known.source = _looked_up(node, known.operation)
        if known.source is not None:
            # A lookup is a layer: what follows it is not the first, whose input does not matter.
            known.signal, known.kind, known.layers = True, Kind.INPUT, True
        return
    known.operands = _signal_operands(node, known.operation)
    known.signal = bool(known.operands)
    if not known.signal:
        return
    sources = [facts(operand) for _, operand in known.operands]
    if node.target is getitem:
        known.kind = Kind.ROUTING
        source = sources[0]
        known.nonnegative, known.padded, known.layers = source.nonnegative, source.padded, source.layers
        known.filled, known.bound = source.filled, source.bound
        return
    operation = known.operation
    assert operation is not None  # the canonical form holds no other signal
    arguments = operation.arguments(node.args, node.kwargs)
    if operation.values == "input" and "input" not in dict(known.operands):
        raise CaptureError(
            f"{known.origin.path or node.name}: the weight of {operation.name} depends on the model's input and what "
            f"it is applied to does not ({known.origin.source}); items of a batch would depend on each other"
        )
    known.kind = operation.several if operation.several and len(known.operands) > 1 else operation.kind
    known.nonnegative = _nonnegative(operation, arguments)
    known.bound = _bound(known, arguments)
    known.padded = _padded(node, known, sources)
    known.filled = known.padded and _filled(known, sources, arguments)
    if known.kind is Kind.GATE:
        known.gate = _gate(known)
    if known.kind is Kind.PRODUCT:
        known.values = _values(known)
    below = any(source.layers for source in sources)
    known.first = operation.parametric and not below
    known.layers = operation.parametric or below


def _signal_operands(node: fx.Node, operation: Operation | None) -> tuple[tuple[str, fx.Node], ...]:
    """The arguments that carry signal; for a list argument, each of its entries."""
    if node.target is getitem:
        source = node.args[0]
        carries = isinstance(source, fx.Node) and facts(source).signal
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


def _padded(node: fx.Node, known: Facts, sources: list[Facts]) -> bool:
    """Whether a part of the value carries no signal: what ``support`` has to know at run time."""
    if known.kind is Kind.ROUTING:
        assert known.operation is not None
        return known.operation.pads or _joins_constants(node) or any(source.padded for source in sources)
    if known.kind is Kind.JOIN:
        return all(source.padded for source in sources)
    return known.kind in (Kind.POINTWISE, Kind.NORMALISATION, Kind.GATE) and any(s.padded for s in sources)


ZERO_AT_ZERO = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh", "abs",
    "neg", "mul", "div", "square", "sqrt", "erf",
})  # fmt: skip
"""Pointwise operations that leave zero padding zero."""


def _filled(known: Facts, sources: list[Facts], arguments: dict[str, Any]) -> bool:
    """Whether padding may hold other values than zero."""
    if any(source.filled for source in sources):
        return True
    assert known.operation is not None
    if known.kind in (Kind.POINTWISE, Kind.NORMALISATION):
        return known.operation.name not in ZERO_AT_ZERO
    return known.operation.pads and arguments["value"] != 0


def _joins_constants(node: fx.Node) -> bool:
    """Whether it concatenates or stacks signal with constants."""
    tensors = node.args[0] if node.args else None
    return isinstance(tensors, list | tuple) and not all(
        isinstance(tensor, fx.Node) and facts(tensor).signal for tensor in tensors
    )


def _gate(known: Facts) -> int | None:
    """Which of two factors is the gate: a divisor, or the better bounded one."""
    assert known.operation is not None
    if known.operation.name == "div":
        return 1
    left, right = (facts(operand).bound.value for _, operand in known.operands)
    if left == right:
        return None
    return 0 if left > right else 1


def _values(known: Facts) -> int | None:
    """Which factor of a product holds the values: as the operation says, or the one that is no weight.

    Weights are bounded (an attention), or else at least never negative (kernels of linear attention).
    """
    assert known.operation is not None
    if known.operation.values is not None:
        return next((i for i, (name, _) in enumerate(known.operands) if name == known.operation.values), None)
    left, right = (facts(operand) for _, operand in known.operands)
    ranks = [(side.bound is Bound.GATE, side.nonnegative) for side in (left, right)]
    if ranks[0] == ranks[1]:
        return None
    return 1 if ranks[0] > ranks[1] else 0


def _bound(known: Facts, arguments: dict[str, Any]) -> Bound:
    """How a result is bounded, seen through what keeps bounds."""
    assert known.operation is not None
    bound = known.operation.bound
    bound = bound(arguments) if callable(bound) else bound
    least = min((facts(operand).bound for _, operand in known.operands), key=lambda b: b.value)
    if bound is Bound.KEEPS:
        return least
    if known.kind is Kind.POINTWISE and least is Bound.REDUCED:
        return max(bound, least, key=lambda b: b.value)  # its root, its inverse: a statistic still
    return bound


def _looked_up(node: fx.Node, operation: Operation) -> fx.Node | None:
    """The integer input that a lookup's indices are, moved or cast at most."""
    source: Any = operation.arguments(node.args, node.kwargs)[operation.operand_names()[0]]
    while isinstance(source, fx.Node) and source.op != "placeholder":
        if not is_moved(source):
            return None
        source = source.args[0]
    return source if isinstance(source, fx.Node) and facts(source).integer else None
