"""Annotate: what is known of every forward node."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import Facts, facts, has_facts
from fxlrp.vocabulary import VOCABULARY, Bound, Kind, Operation, Sign


class Annotate(Pass):
    """Finds signal, kind, operands, sign, padding, gates and first layers.

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
            signal = known.signal and node.op == "call_function"
            check(not signal or bool(known.operands), f"{node} carries signal but has no operand")


def _annotate(node: fx.Node, known: Facts) -> None:
    if node.op == "placeholder":
        known.signal, known.kind = True, Kind.INPUT
        return
    known.operation = VOCABULARY.canonical(node.target) if node.op == "call_function" else None
    known.operands = _signal_operands(node, known.operation)
    known.signal = bool(known.operands)
    if not known.signal:
        return
    sources = [facts(operand) for _, operand in known.operands]
    if node.target is getitem:
        known.kind = Kind.ROUTING
        source = sources[0]
        known.nonnegative, known.padded, known.layers = source.nonnegative, source.padded, source.layers
        known.filled = source.filled
        return
    operation = known.operation
    assert operation is not None  # the canonical form holds no other signal
    arguments = operation.arguments(node.args, node.kwargs)
    known.kind = operation.several if operation.several and len(known.operands) > 1 else operation.kind
    known.nonnegative = _nonnegative(operation, arguments)
    known.padded = _padded(node, known, sources)
    known.filled = known.padded and _filled(known, sources, arguments)
    if known.kind is Kind.GATE:
        known.gate = _gate(known)
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
        for entry in value if isinstance(value, list | tuple) else [value]:
            if isinstance(entry, fx.Node) and facts(entry).signal:
                found.append((name, entry))
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
    left, right = (_bound(operand).value for _, operand in known.operands)
    if left == right:
        return None
    return 0 if left > right else 1


def _bound(node: fx.Node) -> Bound:
    """How a value is bounded, seen through what keeps bounds."""
    while True:
        known = facts(node)
        if node.target is getitem and known.signal:
            node = known.operands[0][1]
            continue
        if known.operation is None or known.operation.bound is not Bound.KEEPS or len(known.operands) != 1:
            break
        node = known.operands[0][1]
    if known.operation is None or known.operation.bound is Bound.KEEPS:
        return Bound.NONE
    return known.operation.bound
