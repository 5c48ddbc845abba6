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

from fxlrp.passes.optimize.base import OptimizerPass, WeightShapes, emitted, inserted, without_dead_code
from fxlrp.passes.optimize.matching import Capture, Step
from fxlrp.steps.batch_axis import rescale, sum_items
from fxlrp.steps.primitives import divide, favoured_denominator, primitive, with_sign
from fxlrp.steps.routing import rebind, unpermute, unreshape, unselect, unsplit

aten = torch.ops.aten

_BY_ELEMENT = (operator.add, torch.add, favoured_denominator)
"""Steps on two values, element by element, that denominators are made of."""

_PRODUCT = Step(torch.matmul, self=Step(divide, with_sign), other=Capture("weight"))
"""A share of relevance times weights, and not the other way round."""

_UNSPLIT = Step(
    unsplit, pieces=Capture("pieces", lambda pieces: len(pieces) == 1), dim=-1,
    values=Step(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, name="split"),
)  # fmt: skip
_PERMUTED = Step(
    aten.permute.default,
    self=Step(aten.reshape.default, aten.view.default, name="reshaped"),
)
_SELECTED_AXIS = Step(
    unreshape, shape=Capture("shape"),
    relevance=Step(
        unpermute, dims=Capture("dims"),
        relevance=Step(
            unselect, relevance=Capture("small"), dim=Capture("dim"), index=Capture("index"),
            shape=Step(getattr, object=_PERMUTED),
        ),
    ),
)  # fmt: skip
_UNBOUND_AXIS = Step(
    unreshape, shape=Capture("shape"),
    relevance=Step(
        unpermute, dims=Capture("dims"),
        relevance=Step(
            rebind, pieces=Capture("entry", lambda entries: len(entries) == 1), dim=Capture("dim"),
            values=Step(aten.unbind.int, self=_PERMUTED),
        ),
    ),
)  # fmt: skip


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
    """Propagates through a part of a linear layer's outputs where relevance comes to that part alone.

    Before::

        relevance_qkv = unsplit([(2, relevance_v)], split, -1)
        s = divide(relevance_qkv, linear(x, weight_positive))
        share = matmul(s, weight_positive)

    After::

        part = outputs_of(weight_positive, 512, 256)
        s = divide(relevance_v, linear(x, part))
        share = matmul(s, part)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        shapes = WeightShapes(module)
        for node in list(module.graph.nodes):
            if node.target in (unsplit, unreshape) and emitted(node):
                _narrow(node, shapes)
        without_dead_code(module.graph)
        return module


def _narrow(relevance: fx.Node, shapes: WeightShapes) -> None:
    """Let a linear rule that starts from ``relevance``, (..., out), read a part of it, where the rest is zeros."""
    shares = [user for user in relevance.users if Step(divide, relevance=relevance).match(user) is not None]
    totals = [user for user in relevance.users if user not in shares]
    signed = [user for share in shares for user in share.users if user.target is with_sign and user.args[0] is share]
    products = [user for share in [*shares, *signed] for user in share.users if user not in signed]
    weights = [_PRODUCT.match(product) for product in products]
    if not all(weights) or not all(_adds_up(user, relevance) for user in totals):
        return
    sizes = {shapes.get(found["weight"]) or torch.Size() for found in weights if found is not None}
    outputs = {size[0] for size in sizes if len(size) == 2}
    if len(outputs) != 1 or not all(sizes):
        return
    (features,) = outputs
    found = _split(relevance, features) or _axis(relevance, features)
    if found is None:
        return
    small, part = found
    for share in shares:
        share.update_arg(0, small)
        share.update_arg(1, _value(share.args[1], share, part, features, shapes))
    for share in signed:
        share.update_arg(1, _value(share.args[1], share, part, features, shapes))
    for product in products:
        product.update_arg(1, _weights(product, product.args[1], part))
    for user in totals:
        user.replace_input_with(relevance, small)


def _adds_up(user: fx.Node, relevance: fx.Node) -> bool:
    """Whether ``user`` takes of the relevance nothing but its sum."""
    return list(user.args).count(relevance) == 1 and (
        Step(sum_items, value=relevance).match(user) is not None
        or Step(rescale, relevance=relevance).match(user) is not None
    )


def _split(relevance: fx.Node, features: int) -> tuple[fx.Node, _Part] | None:
    """The one piece that has relevance, of a layer's output that was chunked or split along its features."""
    a = _UNSPLIT.match(relevance)
    if a is None:
        return None
    ((index, small),), split, how = a["pieces"], a["split"], a["split"].args[1]
    if not all(isinstance(number, int) for number in (how if isinstance(how, list | tuple) else [how])):
        return None
    sizes = [len(piece) for piece in split.target(torch.empty(features, device="meta"), how, 0)]
    return small, _Part(sum(sizes[: index % len(sizes)]), sizes[index])


def _axis(relevance: fx.Node, features: int) -> tuple[fx.Node, _Part] | None:
    """The one entry that has relevance, of features that were parted into several axes, the parts first of them."""
    a = _SELECTED_AXIS.match(relevance) or _UNBOUND_AXIS.match(relevance)
    if a is None:
        return None
    index, small = a["entry"][0] if "entry" in a else (a["index"], a["small"])
    dim, dims, sizes = a["dim"], a["dims"], a["reshaped"].args[1]
    axes = sizes[dims[dim] % len(dims) :]
    if not all(isinstance(size, int) and size > 0 for size in axes) or prod(axes) != features:
        return None
    if not isinstance(index, int):  # it is computed from sizes
        return None
    length = features // axes[0]
    small = inserted(relevance, as_features, small, a["shape"], dim, list(dims))
    return small, _Part(index % axes[0] * length, length)


def _value(value: Any, reader: fx.Node, part: _Part, features: int, shapes: WeightShapes) -> fx.Node:
    """A denominator, for the part alone; where nobody else needs the whole, the whole is not computed."""
    if len(value.users) == 1 and emitted(value):
        if value.target in _BY_ELEMENT and all(isinstance(arg, fx.Node) for arg in value.args[:2]):
            terms = [_value(arg, value, part, features, shapes) for arg in value.args[:2]]
            return inserted(value, value.target, *terms, *value.args[2:], name=f"{value.name}_part")
        held = [arg for arg in value.args[1:] if arg is not None]  # weight and bias
        if value.target is F.linear and not value.kwargs and all((shapes.get(w) or (0,))[0] == features for w in held):
            small = [_weights(value, w, part) for w in held]
            return inserted(value, F.linear, value.args[0], *small, name=f"{value.name}_part")
    return inserted(reader, features_of, value, part.start, part.length, name=f"{value.name}_part")


def _weights(reader: fx.Node, weight: Any, part: _Part) -> fx.Node:
    return inserted(reader, outputs_of, weight, part.start, part.length, name=f"{weight.name}_part")
