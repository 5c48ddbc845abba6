"""The relevance graph for runtimes of ONNX: the optimiser's passes, and those that fit such a runtime alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.exports import onnx_steps as steps
from fxlrp.passes.facts import facts, has_facts
from fxlrp.passes.optimize import PASSES, OptimizerPass
from fxlrp.passes.optimize.base import WeightShapes, emitted, inserted, retarget, without_dead_code
from fxlrp.passes.optimize.matching import Capture, Step, arguments_of
from fxlrp.passes.optimize.transposes import spaced
from fxlrp.steps.addition import gamma_split, ratio_split
from fxlrp.steps.batch_axis import rescale, rescale_signed_to, rescale_to
from fxlrp.steps.convolution import convolution_transpose
from fxlrp.steps.pooling import (
    adaptive_average_pool_transpose,
    average_pool,
    average_pool_transpose,
    upsample_by_axis,
    upsample_transpose,
)
from fxlrp.steps.primitives import (
    divide,
    favoured_denominator,
    magnitude,
    negative,
    positive,
    squared,
    stabilize,
    with_sign,
)
from fxlrp.steps.routing import unpad

aten = torch.ops.aten


def for_onnx(program: fx.GraphModule, asked: Sequence[str]) -> fx.GraphModule:
    """A copy of a program, as the rules wrote it, for a runtime of ONNX.

    Args:
        program: the program.
        asked: the optimisations that ``compile`` was asked for.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    module = fx.GraphModule(program, graph, class_name="Relevance")
    chosen = {name: step for name, step in PASSES.items() if name in asked}
    for step in (
        chosen.get("one_part"), chosen.get("share_steps"), DivideWithoutTest(), PadsInConvolutions(),
        chosen.get("known_sums"), OnesOfOneItem(), TurnedTransposes(),
        chosen.get("transposes_as_convolutions"), FastSteps(),
    ):  # fmt: skip
        module = module if step is None else step(module)
    return module


class PadsInConvolutions(OptimizerPass):
    """Relevance of a value with zeros put round it, as relevance of the value itself.

    Before::

        padded = constant_pad_nd(x, [1, 1, 1, 1])
        c = convolution_transpose(s, weight, padded, [1, 1], [0, 0], [1, 1], 1)
        relevance_padded = rescale(mul(padded, c), relevance, constant_pad_nd(ones_like(x), [1, 1, 1, 1]))
        relevance_x = unpad(relevance_padded, [1, 1, 1, 1])

    After::

        c = turned_transpose(s, weight, x, [1, 1], [1, 1], [1, 1], 1)
        relevance_x = rescale(mul(x, c), relevance)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        self.shapes = WeightShapes(module)
        for node in list(module.graph.nodes):
            a = _UNPADDED.match(node)
            if a is None or min(a["pads"]) < 0 or not _covers(a["support"], a["pads"]):
                continue
            share = self._cut(a["share"], a["pads"], node)
            if share is not None:
                # What follows reads it as relevance of x that was rescaled.
                retarget(node, rescale, share, a["relevance"], None, a["signed"])
        without_dead_code(module.graph)
        return module

    def _cut(self, value: Any, pads: Sequence[int], where: fx.Node, *, blank: bool = True) -> Any:
        """``value`` without its padding, written before ``where``; ``None`` where that is not known.

        ``blank``: only if it is zero in the padding.
        """
        if not isinstance(value, fx.Node):
            return None
        if _is_padded(value, pads):
            return value.args[0]
        if value.target is convolution_transpose and not blank:
            return self._cut_back(value, pads, where)
        if value.target in _ELEMENTWISE:
            # One factor of a product is enough to make it zero; all else must be zero altogether.
            factors = value.target is operator.mul
            parts = [self._cut(arg, pads, where, blank=blank and not factors) for arg in value.args]
            if None in parts or (blank and factors and not any(map(_starts_padded, value.args))):
                return None
            return inserted(where, value.target, *parts)
        return None

    def _cut_back(self, back: fx.Node, pads: Sequence[int], where: fx.Node) -> fx.Node | None:
        a = arguments_of(back)
        shape = self.shapes.get(a["weight"])
        x = self._cut(a["x"], pads, where)
        if shape is None or x is None or len(pads) != 2 * (len(shape) - 2):
            return None
        if any(step != 1 for step in a["stride"]) and shape[1] != 1:
            return None
        front = [p + pad for p, pad in zip(a["padding"], reversed(pads[::2]), strict=True)]
        rest = (front, a["dilation"], a["groups"])
        return inserted(where, steps.turned_transpose, a["s"], a["weight"], x, a["stride"], *rest)


_WINDOWS = ("stride", "padding", "dilation", "groups")
_ELEMENTWISE = (operator.mul, operator.add, positive, negative, magnitude)
_UNPADDED = Step(
    unpad, pad=Capture("pads"),
    relevance=Step(
        rescale, share=Capture("share"), relevance=Capture("relevance"), signed=Capture("signed"),
        support=Capture("support", lambda support: isinstance(support, fx.Node)), batch_axis=None,
        received_batch_axis=None,
    ),
)  # fmt: skip


def _pads_zeros(pad: Any) -> bool:
    return pad.args[2:] in ((), (0,), (0.0,))


def _is_padded(value: Any, pads: Sequence[int]) -> bool:
    return value.target is aten.constant_pad_nd.default and list(value.args[1]) == list(pads) and _pads_zeros(value)


def _covers(support: Any, pads: Sequence[int]) -> bool:
    """Whether a support is ones inside this padding."""
    return _is_padded(support, pads) and support.args[0].target is torch.ones_like


def _starts_padded(value: Any) -> bool:
    """Whether it is zero where a value that it is made of is padded."""
    while value.target in (positive, negative, magnitude):
        value = value.args[0]
    return value.target is aten.constant_pad_nd.default


class DivideWithoutTest(OptimizerPass):
    """Divides without a test for zero where the rest of the rule takes care of zeros.

    A denominator that adds up contributions none of which is negative vanishes where all of them do, and each
    contribution is a factor of what it receives. The γ rule tests the sign of the output anyway.

    Before::

        z = conv2d(x, positive(weight))
        s = divide(relevance, z, False)
        share = mul(x, convolution_transpose(s, positive(weight), x))

    After::

        s = divide_nonzero(relevance, z)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            favoured = _FAVOURED.match(node)
            if favoured is not None and favoured["at_zero"] == (math.inf if favoured["epsilon"] else 0.0):
                names = ("relevance", "z", "total", "factor", "epsilon")
                retarget(node, steps.favoured_quotient, *(favoured[name] for name in names))
            elif node.target is divide:
                a = arguments_of(node)
                if a["epsilon"] and a["signed"]:
                    retarget(node, steps.divide_stabilized, a["relevance"], a["z"], a["epsilon"])
                elif not a["epsilon"] and not a["signed"] and _is_multiplied_out(node, _terms(a["z"])):
                    retarget(node, steps.divide_nonzero, a["relevance"], a["z"])
        without_dead_code(module.graph)
        return module


_FAVOURED = Step(
    divide, relevance=Capture("relevance"), signed=False, epsilon=Capture("epsilon"),
    z=Step(
        favoured_denominator, z=Capture("z"), total=Capture("total"), factor=Capture("factor"),
        at_zero=Capture("at_zero"),
    ),
)  # fmt: skip

_SUMS = (operator.add, torch.add)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_PRODUCTS = (*_CONVOLUTIONS, F.linear, torch.matmul)
_BACK = (convolution_transpose, torch.matmul, average_pool_transpose)


def _terms(z: Any) -> list[tuple[fx.Node, fx.Node | None]] | None:
    """Inputs and weights whose products add up to ``z``; ``None`` where it is more, or where one may be negative."""
    if z.target in _SUMS and len(z.args) == 2 and emitted(z):
        found = [_terms(arg) if isinstance(arg, fx.Node) else None for arg in z.args]
        return None if None in found else [term for terms in found if terms for term in terms]
    if z.target is average_pool and _sign(z.args[0]) == 1:
        return [(z.args[0], None)]
    if z.target not in _PRODUCTS or not emitted(z) or z.kwargs or any(arg is not None for arg in z.args[2:3]):
        return None
    x, weight = z.args[:2]
    return [(x, weight)] if _sign(x) is not None and _sign(x) == _sign(weight) else None


def _sign(value: Any) -> int | None:
    """Of all elements of a value, zeros aside; ``None`` where that is not known."""
    if has_facts(value) and facts(value).nonnegative:
        return 1
    if value.target is aten.constant_pad_nd.default and _pads_zeros(value):
        return _sign(value.args[0])
    return _SIGNS.get(value.target)


_SIGNS: dict[Any, int] = {positive: 1, magnitude: 1, squared: 1, torch.ones_like: 1, negative: -1}


def _is_multiplied_out(s: Any, terms: list[tuple[fx.Node, fx.Node | None]] | None) -> bool:
    """Whether a quotient goes back through the weights of these terms, and is multiplied by their inputs."""
    if not terms:
        return False
    inputs: dict[fx.Node | None, list[fx.Node]] = {}
    for x, weight in terms:
        inputs.setdefault(weight, []).append(x)
    for back in s.users:
        through: Any = None if back.target is average_pool_transpose else back.args[1]
        if back.target not in _BACK or back.args[0] is not s or through not in inputs:
            return False
        for share in back.users:
            others = [arg for arg in share.args if arg is not back]
            if share.target is not operator.mul or len(others) != 1 or others[0] not in inputs[through]:
                return False
    return True


class TurnedTransposes(OptimizerPass):
    """Writes the transpose of a strided depthwise convolution as a convolution over values with zeros between."""

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        shapes = WeightShapes(module)
        for node in list(module.graph.nodes):
            if node.target is not convolution_transpose:
                continue
            a = arguments_of(node)
            shape = shapes.get(a["weight"])
            if shape is not None and len(shape) == 4 and shape[1] == 1 and any(step != 1 for step in a["stride"]):
                args = (a[name] for name in ("s", "weight", "x", *_WINDOWS))
                retarget(node, steps.turned_transpose, *args)
        return module


class OnesOfOneItem(OptimizerPass):
    """Ones in the place of an input, for one item: what a layer makes of them depends on its weights alone.

    A runtime computes that once, when it loads the file.

    Before::

        ones = ones_like(x)
        z = conv2d(ones, weight)
        share = mul(ones, c)

    After::

        ones = ones_of_one_item(x)
        z = conv2d(ones, weight)
        share = c
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if node.target is not torch.ones_like or not emitted(node):
                continue
            for user in list(node.users):
                if user.target is operator.mul and user.args[0] is node and user.args[1].target in _OF_INPUT:
                    user.replace_all_uses_with(user.args[1])
                    module.graph.erase_node(user)
            padded = [user for user in node.users if user.target is aten.constant_pad_nd.default]
            readers = {user.target for value in (node, *padded) for user in value.users if user not in padded}
            if readers <= {*_CONVOLUTIONS, operator.mul, rescale, rescale_to, rescale_signed_to}:
                retarget(node, steps.ones_of_one_item, *node.args)
        return module


_OF_INPUT = (convolution_transpose, steps.turned_transpose)


class FastSteps(OptimizerPass):
    """Takes for each step the one of :mod:`fxlrp.exports.onnx_steps` that does the same."""

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in module.graph.nodes:
            supported = node.target is ratio_split and not _NO_SUPPORT.match(node)
            if node.target in _FAST and not supported:
                node.target = _FAST[node.target]
        return module


_NO_SUPPORT = Step(ratio_split, name="split", skip_support=None, residual_support=None)


_FAST: dict[Any, Any] = {
    stabilize: steps.stabilized, with_sign: steps.times_sign, ratio_split: steps.ratio_halves,
    gamma_split: steps.gamma_shares, average_pool_transpose: steps.average_back,
    adaptive_average_pool_transpose: steps.adaptive_by_axis, upsample_transpose: upsample_by_axis,
    spaced: steps.spaced_fast,
}  # fmt: skip
