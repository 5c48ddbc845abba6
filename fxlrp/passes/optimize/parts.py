"""Layers whose output receives relevance in one part alone: queries, keys and values that are one product.

Where attention passes relevance through its values, two thirds of that product's output receive none. The
rule then need not be computed for them: it is that of a layer with the weights of the values alone.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxlrp.passes.optimize.base import OptimizerPass, emitted, inserted, weight_shapes, without_dead_code
from fxlrp.steps.batch_axis import rescale, sum_items
from fxlrp.steps.primitives import divide, primitive
from fxlrp.steps.routing import rebind, unpermute, unreshape, unselect, unsplit

aten = torch.ops.aten

_ADD = (operator.add, torch.add)
_ADDED_UP: dict[Any, int] = {sum_items: 0, rescale: 1}
"""Steps that take of an argument nothing but its sum, and which argument."""


@primitive
def features_of(value: Tensor, start: int, length: int) -> Tensor:
    """Some of the features of a layer's output, which are the last axis."""
    return value.narrow(-1, start, length)


@primitive
def outputs_of(weight: Tensor, start: int, length: int) -> Tensor:
    """The weights, (out, in), or the bias, (out,), of some of a layer's features; memory of its own."""
    return weight.narrow(0, start, length).clone()


@primitive
def as_features(relevance: Tensor, shape: torch.Size, dim: int, dims: list[int]) -> Tensor:
    """The relevance of one entry along ``dim`` of a permuted value, as features of the layer that it was.

    Args:
        relevance: of the entry.
        shape: of the layer's output: (..., out).
        dim: the axis that the entry was taken from.
        dims: how the layer's output, its features parted into several axes, was permuted before.

    Returns:
        (..., out / entries).
    """
    return unpermute(relevance.unsqueeze(dim), dims).reshape(*shape[:-1], -1)


@dataclass(frozen=True)
class _Part:
    """Which features of the output receive relevance."""

    start: int
    length: int


class OnePart(OptimizerPass):
    """Propagates through a part of a linear layer's outputs where relevance comes to that part alone."""

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        shapes = weight_shapes(module)
        for node in list(module.graph.nodes):
            if node.target in (unsplit, unreshape) and emitted(node):
                _narrow(node, shapes)
        without_dead_code(module.graph)
        return module


def _narrow(relevance: fx.Node, shapes: dict[fx.Node, torch.Size]) -> None:
    """Let a linear rule that starts from ``relevance``, (..., out), read a part of it, where the rest is zeros."""
    shares = [user for user in relevance.users if user.target is divide and user.args[0] is relevance]
    products = [user for share in shares for user in share.users]
    totals = [user for user in relevance.users if user not in shares]
    if not all(map(_multiplies, products)) or not all(_adds_up(user, relevance) for user in totals):
        return
    weights: set[Any] = {product.args[1] for product in products}
    sizes = {shapes[weight][0] for weight in weights if len(shapes.get(weight, ())) == 2}
    if len(sizes) != 1 or not weights <= shapes.keys():
        return
    (features,) = sizes
    found = _split(relevance, features) or _axis(relevance, features)
    if found is None:
        return
    small, part = found
    for share in shares:
        share.update_arg(0, small)
        share.update_arg(1, _value(share.args[1], share, part, features, shapes))
    for product in products:
        product.update_arg(1, _weights(product, product.args[1], part))
    for user in totals:
        user.replace_input_with(relevance, small)


def _multiplies(product: fx.Node) -> bool:
    """Whether it is a share of relevance times weights, and not the other way round."""
    return product.target is torch.matmul and getattr(product.args[0], "target", None) is divide


def _adds_up(user: fx.Node, relevance: fx.Node) -> bool:
    """Whether ``user`` takes of the relevance nothing but its sum."""
    place = _ADDED_UP.get(user.target)
    return place is not None and [i for i, arg in enumerate(user.args) if arg is relevance] == [place]


def _split(relevance: fx.Node, features: int) -> tuple[fx.Node, _Part] | None:
    """The one piece that has relevance, of a layer's output that was chunked or split along its features."""
    if relevance.target is not unsplit:
        return None
    given: Any = relevance.args
    pieces, split, dim = given
    if len(pieces) != 1 or dim != -1:
        return None
    (index, small), how = pieces[0], split.args[1]
    if not all(isinstance(number, int) for number in (how if isinstance(how, list | tuple) else [how])):
        return None
    sizes = [len(piece) for piece in split.target(torch.empty(features, device="meta"), how, 0)]
    return small, _Part(sum(sizes[: index % len(sizes)]), sizes[index])


def _axis(relevance: fx.Node, features: int) -> tuple[fx.Node, _Part] | None:
    """The one entry that has relevance, of features that were parted into several axes, the parts first of them."""
    back: Any = relevance.args[0]
    if relevance.target is not unreshape or getattr(back, "target", None) is not unpermute:
        return None
    permuted: Any
    entry, dims = back.args
    if getattr(entry, "target", None) is unselect:
        small, shape, dim, index = entry.args
        permuted = shape.args[0] if shape.target is getattr else None
    elif getattr(entry, "target", None) is rebind and len(entry.args[0]) == 1:
        ((index, small),), unbound, dim = entry.args
        permuted = unbound.args[0]
    else:
        return None
    if getattr(permuted, "target", None) is not aten.permute.default:
        return None
    reshaped = permuted.args[0]
    if reshaped.target not in (aten.reshape.default, aten.view.default):
        return None
    axes = reshaped.args[1][dims[dim] % len(dims) :]
    if not all(isinstance(size, int) and size > 0 for size in axes) or prod(axes) != features:
        return None
    length = features // axes[0]
    small = inserted(relevance, as_features, small, relevance.args[1], dim, list(dims))
    return small, _Part(index % axes[0] * length, length)


def _value(value: Any, reader: fx.Node, part: _Part, features: int, shapes: dict[fx.Node, torch.Size]) -> fx.Node:
    """A denominator, for the part alone; where nobody else needs the whole, the whole is not computed."""
    if len(value.users) == 1 and emitted(value):
        if value.target in _ADD and all(isinstance(arg, fx.Node) for arg in value.args):
            terms = [_value(arg, value, part, features, shapes) for arg in value.args]
            return inserted(value, value.target, *terms, name=f"{value.name}_part")
        held = [arg for arg in value.args[1:] if arg is not None]  # weight and bias
        if value.target is F.linear and not value.kwargs and all(shapes.get(w, (0,))[0] == features for w in held):
            small = [_weights(value, w, part) for w in held]
            return inserted(value, F.linear, value.args[0], *small, name=f"{value.name}_part")
    return inserted(reader, features_of, value, part.start, part.length, name=f"{value.name}_part")


def _weights(reader: fx.Node, weight: Any, part: _Part) -> fx.Node:
    return inserted(reader, outputs_of, weight, part.start, part.length, name=f"{weight.name}_part")
