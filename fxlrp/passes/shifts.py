"""Shifts: extremes that are subtracted for the stability of an exponential alone.

In ``exp(x − max x)`` the maximum changes nothing of what is made of it: all that it is weighed against is shifted as
well. The difference is exactly zero at the maximum, so that no share of its relevance could be told. So the maximum
is held constant, and relevance passes to ``x``. Softmaxes over groups, scans with a running maximum and softmaxes that
are computed piece by piece are written so.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.steps.scattering import extreme_parts
from fxlrp.vocabulary import VOCABULARY, Kind, Operation

aten = torch.ops.aten

_EXPONENTIALS = frozenset({
    aten.exp.default, aten.exp2.default, aten.pow.Scalar, aten.softmax.int, aten.log_softmax.int,
})  # fmt: skip
_MINIMA = frozenset({"amin", "min", "minimum"})
_EXTREMES = _MINIMA | {"amax", "max", "maximum", "logsumexp", "logcumsumexp"}
_CLAMPS = frozenset({"clamp", "clamp_min", "clamp_max"})


def shift_of(node: fx.Node) -> fx.Node | None:
    """The operand of a sum or difference that is held constant, being there for stability alone."""
    operation = VOCABULARY.called_by(node)
    if operation is None or operation.name not in ("add", "sub"):
        return None
    one, other = node.args
    if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
        return None
    found = _subtracted(one, other) if operation.name == "sub" else _added(one, other)
    return found if found is not None and _is_exponentiated(node) else None


def _subtracted(one: fx.Node, other: fx.Node) -> fx.Node | None:
    if _is_extreme(other, _EXTREMES):
        return other
    return one if _is_extreme(one, _MINIMA) else None


def _added(one: fx.Node, other: fx.Node) -> fx.Node | None:
    for term in (other, one):
        negated = term.target is aten.neg.default
        if _is_extreme(term.args[0], _EXTREMES) if negated else _is_extreme(term, _MINIMA):
            return term
    return None


def _is_extreme(value: Any, names: frozenset[str]) -> bool:
    """Whether a value is a maximum, or another function of these names, or moved or scaled ones."""
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        operation = VOCABULARY.called_by(node)
        if operation is not None and operation.name in names:
            return True
        if node.target is getitem:
            waiting.append(node.args[0])
        elif operation is None:
            continue
        elif operation.name == "scatter_add":  # of those that are the largest of their group
            chosen = operation.arguments(node.args, node.kwargs)["src"]
            if any(source.target is extreme_parts for source in getattr(chosen, "all_input_nodes", [])):
                return True
        elif operation.name == "gather" and _is_running(node):
            return True
        elif operation.kind is Kind.ROUTING or _is_scale(operation, node):
            arguments = operation.arguments(node.args, node.kwargs)
            for name in operation.operand_names():
                entries = arguments[name]
                waiting += entries if isinstance(entries, list | tuple) else [entries]
    return False


def _is_running(gather: fx.Node) -> bool:
    """Whether it gathers the entries that a running extreme is at."""
    index: Any = gather.args[2]
    return isinstance(index, fx.Node) and index.args[:1] in (("cummax",), ("cummin",))


def _is_exponentiated(difference: fx.Node) -> bool:
    """Whether all that is made of a difference is exponentials, in which a shift is a factor."""
    waiting, seen, found = [difference], set(), False
    while waiting:
        node = waiting.pop()
        for user in node.users:
            operation = VOCABULARY.called_by(user)
            if user.op == "output":
                return False
            if user.target in _EXPONENTIALS or _is_normalised(user, node):
                found = True
            elif user.target is getitem or (operation is not None and _passes_shift(operation, user)):
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
            elif operation is not None:
                return False
    return found


def _passes_shift(operation: Operation, node: fx.Node) -> bool:
    """Whether a shift of an operand is one of the result."""
    return operation.kind is Kind.ROUTING or operation.name in ("add", "sub") or _is_scale(operation, node)


def _is_scale(operation: Operation, node: fx.Node) -> bool:
    """Whether it scales by a constant, casts or clamps."""
    if operation.name in ("neg", "to", "nan_to_num") or operation.name in _CLAMPS:
        return True
    factor = node.args[1] if operation.name in ("mul", "div") else node
    return not isinstance(factor, fx.Node) or factor.op == "get_attr"


def _is_normalised(node: fx.Node, z: fx.Node) -> bool:
    """Whether it subtracts the logarithm of exponentials of ``z`` from ``z``, which takes the shift out again."""
    operation = VOCABULARY.called_by(node)
    if operation is None or operation.name != "sub" or node.args[0] is not z:
        return False
    waiting: list[Any] = [node.args[1]]
    logarithm = False
    while waiting:
        value = waiting.pop()
        above = VOCABULARY.called_by(value)
        if above is None:
            continue
        if value.target is aten.exp.default and value.args[0] is z:
            return logarithm
        logarithm = logarithm or above.name == "log"
        sums = above.kind is Kind.LINEAR and not above.parametric
        if above.name in ("log", "exp", "add", "clamp", "clamp_min", "mul") or above.kind is Kind.ROUTING or sums:
            waiting += value.all_input_nodes
    return False
