"""Softmaxes that a model writes out, in the spelling of torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes.base import Pass
from fxlrp.passes.building import target_name
from fxlrp.passes.ranks import Ranks
from fxlrp.vocabulary import VOCABULARY

aten = torch.ops.aten

_EXPANDS = ("expand", "expand_as")


class FindSoftmaxes(Pass):
    """Writes a softmax over one axis that a model spells out as one operation, so that it has the rule of a softmax.

    ``exp(z) / Σ exp(z)`` and ``exp(log_softmax(z))`` become ``softmax(z)``, and ``z − log Σ exp(z)`` becomes
    ``log_softmax(z)``. What is the same along the axis then drops out: ``softmax(x − max x)`` is ``softmax(x)``.
    Relevance could not be shared over that difference, which is exactly zero at the maximum.

    Requires a canonical graph.
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        axes = _Axes()
        for node in module.graph.nodes:
            found = _log_softmax(node, axes) or _softmax(node, axes)
            if found is not None:
                _become(node, *found)
            if _name(node) in ("softmax", "log_softmax"):
                _drop_shifts(node, axes)
        module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        module.recompile()
        return module


class _Axes:
    """Compares axes, which may be counted from either end."""

    def __init__(self) -> None:
        self._ranks = Ranks()

    def same(self, value: fx.Node, one: Any, other: Any) -> bool:
        """Whether two numbers are known to mean the same axis of a value."""
        if one == other or not (isinstance(one, int) and isinstance(other, int)):
            return bool(one == other)
        rank = self._ranks.of(value)
        return rank.least == rank.most and (one - other) % rank.most == 0


def _softmax(node: fx.Node, axes: _Axes) -> tuple[Any, ...] | None:
    """``softmax`` and its arguments, where ``node`` is one that is spelled out."""
    if node.target is aten.exp.default and _name(node.args[0]) == "log_softmax":
        logarithm: Any = node.args[0]
        return aten.softmax.int, *logarithm.args
    for exponential, total in _quotients(node):
        if _name(exponential) != "exp":
            continue
        reduced = _one_axis(total, axes)
        if reduced is not None and _name(reduced[0]) == "sum" and _is_exp_of(reduced[0].args[0], exponential.args[0]):
            return aten.softmax.int, exponential.args[0], reduced[1]
    return None


def _log_softmax(node: fx.Node, axes: _Axes) -> tuple[Any, ...] | None:
    """``log_softmax`` and its arguments, where ``node`` is one that is spelled out."""
    if _name(node) != "sub":
        return None
    z, normaliser = node.args
    found = _one_axis(normaliser, axes, through="log")
    if found is None:
        return None
    reduced, axis, logarithm = found
    whole = _name(reduced) == "logsumexp" and not logarithm and reduced.args[0] is z
    spelled = _name(reduced) == "sum" and logarithm and _is_exp_of(reduced.args[0], z)
    return (aten.log_softmax.int, z, axis) if whole or spelled else None


def _quotients(node: fx.Node) -> list[tuple[Any, Any]]:
    """Numerator and denominator; of a product the factors in whichever order one is an inverse."""
    if _name(node) == "div":
        return [(node.args[0], node.args[1])]
    if _name(node) != "mul":
        return []
    one, other = node.args
    return [(a, b) for a, b in ((one, _inverted(other)), (other, _inverted(one))) if b is not None]


def _inverted(value: Any) -> fx.Node | None:
    """What ``value`` is the inverse of."""
    if _name(value) == "mul" and value.args[1] == 1:  # a number divided by a value
        value = value.args[0]
    powered = _name(value) == "pow" and value.target is aten.pow.Tensor_Scalar and value.args[1] == -1
    return value.args[0] if powered or _name(value) == "reciprocal" else None


def _one_axis(value: Any, axes: _Axes, through: str = "") -> tuple[fx.Node, int, bool] | None:
    """The reduction over one axis that ``value`` is, the axis being kept or put back; and whether ``through`` follows.

    ``None``: it is none.
    """
    put_back, followed = None, False
    while _name(value) in (*_EXPANDS, "unsqueeze", through or None):
        if _name(value) == "unsqueeze":
            if put_back is not None:
                return None
            put_back = value
        followed = followed or _name(value) == through
        value = value.args[0]
    dims, keeps = _reduces(value)
    if dims is None or len(dims) != 1 or keeps is (put_back is not None):
        return None
    if put_back is not None and not axes.same(put_back, put_back.args[1], dims[0]):
        return None
    return value, dims[0], followed


def _drop_shifts(node: fx.Node, axes: _Axes) -> None:
    """Let a softmax read ``x`` in place of ``x − m``, also behind scales, where ``m`` is the same along its axis."""
    while True:
        scales: list[fx.Node] = []
        value: Any = node.args[0]
        while _is_scale(value):
            scales.append(value)
            value = value.args[0]
        kept = _without_shift(value, node.args[1], axes)
        if kept is None:
            return
        with node.graph.inserting_before(node):
            new, negated = kept
            if negated:
                new = _like(value, aten.neg.default, (new,))
            for scale in reversed(scales):
                new = _like(scale, scale.target, (new, *scale.args[1:]))
        node.args = (new, *node.args[1:])


def _like(node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A new call that comes from where ``node`` comes from."""
    made = node.graph.call_function(target, args, node.kwargs)
    made.meta = dict(node.meta)
    made._rename(target_name(target))
    return made


def _is_scale(value: Any) -> bool:
    """Whether a value is another one times a number, or a cast of it."""
    name = _name(value)
    return name in ("neg", "to") or (name in ("mul", "div") and isinstance(value.args[1], int | float))


def _without_shift(value: Any, axis: Any, axes: _Axes) -> tuple[fx.Node, bool] | None:
    """The operand of a sum or difference whose other one is the same along an axis, and whether it is subtracted."""
    if _name(value) not in ("add", "sub") or not all(isinstance(arg, fx.Node) for arg in value.args):
        return None
    one, other = value.args
    if _is_same_along(other, one, axis, axes):
        return one, False
    return (other, _name(value) == "sub") if _is_same_along(one, other, axis, axes) else None


def _is_same_along(shift: Any, x: fx.Node, axis: int, axes: _Axes) -> bool:
    """Whether a value is a statistic of ``x`` that is the same all along one of its axes, or one number."""
    put_back: fx.Node | None = None
    while _name(shift) in (*_EXPANDS, "unsqueeze", "neg"):
        if _name(shift) == "unsqueeze" and put_back is None:
            put_back = shift
        shift = shift.args[0]
    if shift.target is getitem and shift.args[1] == 0 and _name(shift.args[0]) in ("max", "min"):
        shift = shift.args[0]
    dims, keeps = _reduces(shift)
    if dims is None:
        return False
    if not dims:
        return not keeps and put_back is None
    if shift.args[0] is not x:
        return False
    if put_back is not None:
        return axes.same(put_back, put_back.args[1], axis)
    return keeps and any(axes.same(x, dim, axis) for dim in dims)


def _reduces(value: Any) -> tuple[Sequence[int] | None, bool]:
    """The axes that an operation reduces, an empty list for all, and whether it keeps them; ``None``: no axis."""
    operation = VOCABULARY.called_by(value)
    if operation is None or value.kwargs:
        return None, False
    arguments = operation.arguments(value.args, value.kwargs)
    if "keepdim" not in arguments:
        return None, False
    dim = arguments["dim"]
    return [dim] if isinstance(dim, int) else list(dim or []), bool(arguments["keepdim"])


def _is_exp_of(value: Any, z: Any) -> bool:
    return _name(value) == "exp" and value.args[0] is z


def _name(value: Any) -> str:
    """The short name of the operation that makes a value; ``""``: none of the vocabulary does."""
    operation = VOCABULARY.called_by(value)
    return "" if operation is None else operation.name


def _become(node: fx.Node, target: Any, *args: Any) -> None:
    """Make a node another call."""
    before = target_name(node.target)
    node.target, node.args, node.kwargs = target, args, {}
    node._rename(node.name.replace(before, target_name(target)))
