"""Memory that is used again: a step writes into an operand that nobody reads afterwards."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.passes.optimize.base import OptimizerPass, retarget
from fxlrp.passes.optimize.packed import packed_convolution, same_convolution
from fxlrp.passes.optimize.transposes import interleaved, spaced
from fxlrp.rules import join
from fxlrp.steps import batch_axis, operations, pooling, primitives
from fxlrp.steps.in_place import (
    activation_into,
    add_into,
    divide_into,
    multiply_into,
    ratio_split_into,
    rescale_into,
    signed_split_into,
    subtract_into,
)

aten = torch.ops.aten


class Into(NamedTuple):
    """The form of a step that writes into its operands.

    Attributes:
        step: the function.
        ways: orders of the step's first arguments to call it with.
        writes: the arguments, in that order, that it writes into.
        spare: one that it may write into besides, told by ``spare=True``, where nobody reads that again either.
    """

    step: Callable[..., Any]
    ways: tuple[tuple[int, ...], ...] = ((0,),)
    writes: tuple[int, ...] = (0,)
    spare: int | None = None


_ACTIVATIONS = ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "hardtanh", "gelu", "elu", "leaky_relu")

_INTO: dict[Any, Into] = {
    primitives.divide: Into(divide_into, writes=(1,), spare=0),
    operator.mul: Into(multiply_into, ((1, 0), (0, 1))),
    operator.add: Into(add_into, ((0, 1), (1, 0))),
    operator.sub: Into(subtract_into),
    batch_axis.rescale_to: Into(rescale_into),
    join.ratio_split: Into(ratio_split_into, writes=(0, 2)),
    join.signed_split: Into(signed_split_into),
    **{getattr(aten, name).default: Into(activation_into(name)) for name in _ACTIVATIONS},
}

_SPLITS = (join.ratio_split, join.signed_split)

_FRESH: set[Any] = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear, torch.matmul,
    operations.convolution_transpose, pooling.average_pool_transpose, pooling.window_sum_transpose,
    pooling.average_pool, pooling.adaptive_average_pool_transpose,
    primitives.divide, batch_axis.rescale_to, operator.mul, operator.add, operator.sub, operator.truediv,
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.batch_norm.default,
    aten.layer_norm.default, aten.group_norm.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor,
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    *(getattr(aten, name).default for name in _ACTIVATIONS), packed_convolution, same_convolution, interleaved, spaced,
}  # fmt: skip
"""Steps whose result is memory of its own."""

_READERS: set[Any] = _FRESH | {batch_axis.sum_items, batch_axis.item_sum, *_SPLITS} | {
    into.step for into in _INTO.values()
}  # fmt: skip
"""Steps that read their operands and keep no hold of their memory."""


class ReuseMemory(OptimizerPass):
    """Lets steps write into operands at their end.

    A step's operand is at its end if it is the result of a step that makes new memory, if whoever
    else reads it comes before, and if none of those hands its memory on.
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        order = {node: i for i, node in enumerate(module.graph.nodes)}
        fresh = {node for node in module.graph.nodes if node.target in _FRESH or _is_share(node)}
        for node in list(module.graph.nodes):
            into = _INTO.get(node.target)
            if into is None or node.kwargs:
                continue
            for way in into.ways:
                args = [node.args[i] for i in way] + list(node.args[len(way) :])
                nodes = ((i, arg) for i, arg in enumerate(args) if isinstance(arg, fx.Node))
                free = {i for i, arg in nodes if arg in fresh and _ends_at(arg, node, order)}
                if _writes_numbers(node, args) or not free.issuperset(into.writes):
                    continue
                retarget(node, into.step, *args)
                if into.spare in free:
                    node.kwargs = {"spare": True}
                fresh.add(node)
                break
        return module


def _is_share(node: fx.Node) -> bool:
    """Whether ``node`` is one of the shares of a split."""
    return node.target is operator.getitem and getattr(node.args[0], "target", None) in _SPLITS


def _writes_numbers(node: fx.Node, args: list[Any]) -> bool:
    """Whether ``node`` is an operation of Python's with a number, not a tensor, for an operand."""
    binary = node.target in (operator.mul, operator.add, operator.sub)
    return binary and not all(isinstance(arg, fx.Node) for arg in args[:2])


def _reads(user: fx.Node) -> bool:
    """Whether ``user`` keeps no hold of the memory that it reads; of attributes a shape alone does not."""
    return user.target in _READERS or (user.target is getattr and str(user.args[1]) == "shape")


def _ends_at(value: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    before = all(user is node or (order[user] < order[node] and _reads(user)) for user in value.users)
    return before and list(node.args).count(value) == 1
