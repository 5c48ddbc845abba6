"""Signal: which captured nodes carry values of an input, not only shapes, indices or masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.capture import Captured
from fxlrp.vocabulary import VOCABULARY, Kind

SHAPE_METHODS = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "get_device", "is_contiguous", "is_floating_point",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "element_size", "type", "__len__",
})  # fmt: skip
SHAPE_FUNCTIONS = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "is_floating_point", "numel",
    "len", "sym_size", "sym_numel", "sym_stride", "zero", "fill",
})  # fmt: skip
VALUE_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "values", "indices", "real", "imag"})
"""Attributes of a tensor that are its values, moved; all others are facts about its shape."""
QUESTIONS = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "argmax", "argmin", "argsort", "logical_not",
    "logical_and", "logical_or", "any", "all", "is_tensor", "bool", "long", "int", "sign",
})  # fmt: skip
"""Functions and methods whose answers are booleans, indices or counts."""


def signal_nodes(captured: Captured) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that carry signal, and the inputs that hold integers.

    Integers carry none themselves: they are indices, counts or masks. Where an integer
    input is looked up in an embedding, signal begins.
    """
    integers = {node for node in captured.graph.nodes if node.op == "placeholder" and node.target in captured.integers}
    lookups = {}
    for node in captured.graph.nodes:
        source = _looked_up(node)
        if source is not None and (source in integers or captured.way == "symbolic"):
            lookups[node] = source
    integers |= set(lookups.values())
    signal: set[fx.Node] = set()
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            carries = node not in integers
        else:
            depends = any(source in signal for source in node.all_input_nodes)
            carries = node in lookups or (depends and not _asks(node) and _is_floating(node))
        if carries:
            signal.add(node)
    return signal, integers


def _looked_up(node: fx.Node) -> fx.Node | None:
    """The input whose integers ``node`` looks up in an embedding, perhaps moved or cast."""
    target: Any = node.target
    operation = VOCABULARY.function(target) if node.op == "call_function" else None
    if operation is None or operation.kind is not Kind.INPUT:
        return None
    if isinstance(target, torch._ops.OpOverload):
        source: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("indices")
    else:
        source = node.args[0] if node.args else node.kwargs.get("input")
    while isinstance(source, fx.Node) and source.op != "placeholder":
        if not is_moved(source):
            return None
        source = source.args[0]
    return source if isinstance(source, fx.Node) else None


def is_moved(node: fx.Node) -> bool:
    """Whether a node only moves or casts its first argument."""
    name = str(node.target) if node.op == "call_method" else ""
    if name in ("long", "int", "to", "contiguous"):
        return True
    operation = VOCABULARY.method(name) if name else VOCABULARY.function(node.target)
    moves = operation is not None and operation.kind is Kind.ROUTING
    aten = torch.ops.aten
    casts = node.target in (aten._to_copy.default, aten.clone.default, aten.to.dtype)
    return moves or casts or VOCABULARY.overload(node.target) is aten.reshape.default


def _is_floating(node: fx.Node) -> bool:
    """Whether a node's values are floating point, as far as the capture knows."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value is None or (isinstance(value, torch.Tensor) and value.is_floating_point())


def _asks(node: fx.Node) -> bool:
    """Whether a node asks for a shape, a boolean or an index."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS or node.target in QUESTIONS
    if node.target is getattr:
        return node.args[1] not in VALUE_ATTRIBUTES
    if node.op != "call_function":
        return False
    target: Any = node.target
    overload = isinstance(target, torch._ops.OpOverload)
    name = target.overloadpacket.__name__ if overload else getattr(target, "__name__", "")
    return name in SHAPE_FUNCTIONS or name in QUESTIONS or (overload and name in SHAPE_METHODS)
