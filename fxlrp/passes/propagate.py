"""From a node's relevance to its operands': the assigned rule, called as the node's kind calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx

from fxlrp.passes.facts import Facts, facts, operation_of, rule_of
from fxlrp.passes.values import Values
from fxlrp.rules.gradient import Gradient, ReLUDeconvNet, ReLUGuidedBackprop
from fxlrp.rules.linear import LinearRule
from fxlrp.rules.normalisation import NormEpsilon
from fxlrp.rules.product import SoftmaxTaylor, ThroughValues
from fxlrp.rules.rule import CONSTANT, PADDING, Shares
from fxlrp.rules.split import SplitRule
from fxlrp.steps.derivative import vector_jacobian
from fxlrp.steps.norm_transposes import all_over, batch_norm_scale, batch_norm_shift, in_channels
from fxlrp.steps.primitives import fit
from fxlrp.steps.routing import outside
from fxlrp.vocabulary import Bound, Kind
from fxlrp.vocabulary.attention import attention_of

Relevance = Any
"""A proxy; for a value that is a list, pairs of an index and a proxy."""


def propagate(values: Values, node: fx.Node, relevance: Relevance, *, signed: bool) -> Shares:
    """Share ``relevance`` of ``node`` out over its operands, by its rule.

    Args:
        values: the forward values.
        node: a forward node that carries signal.
        relevance: what it received.
        signed: whether that may be negative.
    """
    known = facts(node)
    if isinstance(known.rule, Gradient):
        return _gradient(values, node, known, relevance, known.rule)
    return _BY_KIND[known.kind](values, node, known, relevance, signed=signed)


def _gradient(values: Values, node: fx.Node, known: Facts, relevance: Relevance, rule: Gradient) -> Shares:
    if known.kind is Kind.LINEAR:
        ((name, operand),) = known.operands
        operation, weight, _ = _bound(values, node, name)
        if not operation.held:
            return rule(relevance, lambda r: [operation.transpose(r, weight, values.value(operand))])
    operands = [values.value(operand) for _, operand in known.operands]

    def back(r: Relevance) -> list[Any]:
        found: Any = vector_jacobian(r, node.target, *values.call(node), operands)
        return [found[i] for i in range(len(operands))]

    return rule(relevance, back)


def _bound(values: Values, node: fx.Node, operand: str) -> tuple[Any, Any, Any]:
    """The linear operation that a node is in one operand, with its weights and bias."""
    bind = operation_of(facts(node)).bind
    assert bind is not None
    bound: tuple[Any, Any, Any] = bind(values.arguments(node), operand)
    return bound


def _about(values: Values, operand: fx.Node, node: fx.Node) -> dict[str, Any]:
    """What rules want to know of an operand beside its value."""
    known = facts(operand)
    nonnegative = known.nonnegative and values.signs
    about = {"nonnegative": nonnegative, "support": values.support(operand), "filled": known.filled}
    return {**about, **values.items(operand, node)}


def _linear(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    ((name, operand),) = known.operands
    operation, weight, bias = _bound(values, node, name)
    bias = None if bias is None else operation.broadcast_bias(bias)
    if known.norm_before is not None:
        ((_, operand),) = facts(known.norm_before).operands
    x = values.value(operand)
    if known.norm_before is not None:
        scale, shift = _affine(values, known.norm_before)
        shifted = operation.apply(all_over(shift, x), weight)
        operation, weight = operation.scaled_inputs(weight, scale, x)
        bias = shifted if bias is None else bias + shifted
    if known.norm_behind is not None:
        scale, shift = _affine(values, known.norm_behind)
        operation, weight = operation.scaled_outputs(weight, scale, x)
        scale, shift = in_channels(scale, x), in_channels(shift, x)
        bias = shift if bias is None else bias * scale + shift
    about = _about(values, operand, node)
    if values.outputs and not operation.held:  # with the norm behind it in it, the operation gives what the norm does
        about["output"] = values.value(known.norm_behind or node)
    return rule_of(known)(operation, x, weight, bias, relevance, signed=signed, **about)


def _affine(values: Values, norm: fx.Node) -> tuple[Any, Any]:
    """Scale and shift of the channels in a batch norm."""
    a = values.arguments(norm)
    scale = batch_norm_scale(a["weight"], a["running_var"], a["eps"])
    return scale, batch_norm_shift(scale, a["bias"], a["running_mean"])


def _product(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    rule: Any = rule_of(known)
    factors: list[Any] = [partial(_factor, values, signed, node, i) for i in range(len(known.operands))]
    operation = operation_of(known)
    if operation.values == "input":  # a weight that the model computes for its input is held constant
        return ThroughValues(rule.rule)(relevance, factors, known.values)
    if operation.values != "value":
        return rule(relevance, factors, known.values)
    if rule.through_weights:
        return _among_signals(rule.attention(relevance, attention_of(values.arguments(node))), known)
    if known.values is None:  # the values are constants, whatever picks among them
        return Shares([None] * len(factors), {CONSTANT: lambda: relevance})
    return rule(relevance, factors, known.values)


def _among_signals(shares: Shares, known: Facts) -> Shares:
    """Shares for all operands of an operation as shares for those that carry signal."""
    carries = dict(known.operands)
    named = list(zip(operation_of(known).operand_names(), shares.operands, strict=True))
    constants = [share for name, share in named if name not in carries and share is not None]
    shares.operands = [share for name, share in named if name in carries]
    if constants:
        shares.absorbed[CONSTANT] = lambda: constants
    return shares


def _factor(values: Values, signed: bool, node: fx.Node, index: int, rule: LinearRule, relevance: Any) -> Shares:
    """Share relevance out over one factor of a product by a linear rule, the others held constant."""
    known = facts(node)
    name, operand = known.operands[index]
    operation, weight, bias = _bound(values, node, name)
    bias = None if bias is None else operation.broadcast_bias(bias)
    others = [facts(o) for i, (_, o) in enumerate(known.operands) if i != index]
    weights = name == "value" or (len(others) == 1 and others[0].nonnegative)
    about = {**_about(values, operand, node), "weight_nonnegative": weights}
    return rule(operation, values.value(operand), weight, bias, relevance, signed=signed, **about)


def _recurrent(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    call: Any = _bound(values, node, known.operands[0][0])
    return rule_of(known)(relevance, call)


def _selection(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    ((name, operand),) = known.operands
    pool: Any = _bound(values, node, name)
    if isinstance(relevance, list):  # it returns its indices as well
        relevance = _added([part for index, part in relevance if index == 0])
    return rule_of(known)(pool, values.value(operand), relevance, signed=signed, **_about(values, operand, node))


def _join(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    operands = [operand for _, operand in known.operands]
    skip = next(i for i, operand in enumerate(operands) if operand.name == known.join.skip)
    order = (operands[skip], operands[1 - skip])
    rule, supports, terms = rule_of(known), {}, [values.value(operand) for operand in order]
    assert isinstance(rule, SplitRule)
    if rule.needs_support:
        supports = dict(zip(("skip_support", "residual_support"), map(values.support, order), strict=True))
    if rule.needs_sign and operation_of(known).name == "sub":
        subtracted = 1 - skip
        terms[subtracted] = -terms[subtracted]
    shares = rule(relevance, *terms, **supports)
    fitted = [s if s is None else fit(s, values.value(o).shape) for s, o in zip(shares.operands, order, strict=True)]
    shares.operands = fitted if skip == 0 else fitted[::-1]
    return shares


def _gate(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    gate = None if known.gate is None else facts(known.operands[known.gate][1])
    statistic = gate is not None and gate.bound is Bound.REDUCED
    shares = rule_of(known)(relevance, gate=known.gate, statistic=statistic)
    shares.operands = [
        share if share is None else fit(share, values.value(operand).shape)
        for share, (_, operand) in zip(shares.operands, known.operands, strict=True)
    ]
    return shares


def _pass(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    rule = rule_of(known)
    ((_, operand),) = known.operands
    if isinstance(rule, SoftmaxTaylor):
        return rule(relevance, values.value(operand), values.value(node), dim=values.arguments(node)["dim"])
    if isinstance(rule, ReLUGuidedBackprop | ReLUDeconvNet):
        return rule(relevance, values.value(operand))
    if isinstance(rule, NormEpsilon):
        bind, x = operation_of(known).bind, values.value(operand)
        assert bind is not None
        return rule(relevance, x, values.value(node), bind(values.arguments(node), x))
    shares = rule(relevance)
    if known.kind is Kind.POINTWISE and len(node.all_input_nodes) > 1:
        # A constant may have broadcast the signal.
        shares.operands = [s if s is None else fit(s, values.value(operand).shape) for s in shares.operands]
    return shares


def _routing(values: Values, node: fx.Node, known: Facts, relevance: Relevance, *, signed: bool) -> Shares:
    operation = operation_of(known)
    arguments = values.arguments(node)
    arguments["output"] = values.value(node)
    assert operation.transpose is not None
    moved = operation.transpose(relevance, arguments)
    names = operation.operand_names()
    if names == ("tensors",):
        entries: Any = node.args[0]
        carries = [isinstance(entry, fx.Node) and facts(entry).signal for entry in entries]
    elif len(names) > 1:
        carries = [name in dict(known.operands) for name in names]
    else:
        shares = Shares([moved])
        if operation.pads:
            shares.absorbed[PADDING] = lambda: outside(relevance, arguments["pad"])
        if operation.loses:
            shares.absorbed[CONSTANT] = lambda: relevance - moved
        return shares
    pieces = [(signal, moved[i]) for i, signal in enumerate(carries)]
    shares = Shares([piece for signal, piece in pieces if signal])
    constants = [piece for signal, piece in pieces if not signal]
    if names == ("tensors",):
        if operation.name == "stack":  # the batch of what is absorbed is where the node has it
            constants = [piece.unsqueeze(arguments["dim"]) for piece in constants]
    else:  # an operand may have been broadcast
        shares.operands = [
            share if share is None else fit(share, values.value(operand).shape)
            for share, (_, operand) in zip(shares.operands, known.operands, strict=True)
        ]
    if constants:
        shares.absorbed[CONSTANT] = lambda: constants
    return shares


_BY_KIND: dict[Kind, Callable[..., Shares]] = {
    Kind.LINEAR: _linear,
    Kind.PRODUCT: _product,
    Kind.SELECTION: _selection,
    Kind.RECURRENT: _recurrent,
    Kind.JOIN: _join,
    Kind.GATE: _gate,
    Kind.POINTWISE: _pass,
    Kind.NORMALISATION: _pass,
    Kind.ROUTING: _routing,
}


def _added(amounts: list[Any]) -> Any:
    total = amounts[0]
    for amount in amounts[1:]:
        total = total + amount
    return total
