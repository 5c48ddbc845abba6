"""Signal: which captured nodes carry values of an input, not only shapes, indices or masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.capture import Captured
from fxlrp.passes.lookups import SHAPE_FUNCTIONS, SHAPE_METHODS, index_of, trail

VALUE_ATTRIBUTES = frozenset({
    "T", "mT", "H", "mH", "data", "values", "indices", "real", "imag", "solution", "logabsdet",
})  # fmt: skip
"""Attributes of a tensor that are its values, moved; all others are facts about its shape."""
QUESTIONS = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "argmax", "argmin", "argsort", "logical_not",
    "logical_and", "logical_or", "logical_xor", "any", "all", "is_tensor", "bool", "long", "int", "sign", "signbit",
    "bucketize", "searchsorted", "isclose", "isin", "isposinf", "isneginf", "isreal", "count_nonzero", "histc",
})  # fmt: skip
"""Functions and methods whose answers are booleans, indices or counts."""


def signal_nodes(captured: Captured) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that carry signal, and the inputs that hold integers.

    Integers carry none themselves: they are indices, counts or masks. Where an integer input is
    looked up in an embedding, signal begins. Where nothing else is signal, they are numbers to compute with.
    """
    integers = {node for node in captured.graph.nodes if node.op == "placeholder" and node.target in captured.integers}
    lookups = {}
    casts = set()  # lookups by columns of a table of numbers, which are cast for it
    for node in captured.graph.nodes:
        *_, source = [None, *trail(index_of(node))]
        if source is None:
            continue
        if source in integers or captured.way == "symbolic":
            lookups[node] = source
        elif _is_floating(source):
            casts.add(node)
    integers |= set(lookups.values())
    if not lookups and all(node in integers for node in captured.graph.nodes if node.op == "placeholder"):
        integers = set()
    signal: set[fx.Node] = set()
    counts: set[fx.Node] = set()  # integers that carry signal: one-hot codes, and inputs that are computed with
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            carries = node not in integers
        else:
            depends = any(source in signal for source in node.all_input_nodes)
            counted = any(source in counts for source in node.all_input_nodes)
            computed = depends and not _asks(node) and (_is_floating(node) or counted)
            carries = computed or node in lookups or node in casts
        if carries:
            signal.add(node)
            if not _is_floating(node):
                counts.add(node)
    return signal, integers


def _is_floating(node: fx.Node) -> bool:
    """Whether a node's values are floating point or complex, as far as the capture knows."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value is None or (isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()))


def _asks(node: fx.Node) -> bool:
    """Whether a node asks for a shape, a boolean or an index."""
    if node.op == "call_method":
        names_type = node.target == "type" and len(node.args) == 1 and not node.kwargs
        return names_type or node.target in SHAPE_METHODS or node.target in QUESTIONS
    if node.target is getattr:
        return node.args[1] not in VALUE_ATTRIBUTES
    if node.op != "call_function":
        return False
    target: Any = node.target
    overload = isinstance(target, torch._ops.OpOverload)
    name = target.overloadpacket.__name__ if overload else getattr(target, "__name__", "")
    if name == "bincount":
        return len(node.args) < 2 and "weights" not in node.kwargs
    return name in SHAPE_FUNCTIONS or name in QUESTIONS or (overload and name in SHAPE_METHODS)
