"""What passes know of a node, and how they find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxlrp.rules.rule import Rule
from fxlrp.vocabulary import Bound, Kind, Operation

KEY = "fxlrp"


@dataclass
class Origin:
    """Where in the model a node comes from.

    Attributes:
        path: the innermost module's path, ``""`` for the model itself.
        modules: (path, type) of every module around it, from the outside in.
        calls: the same paths with ``@n`` for the n-th repeated call.
        source: the source line, where it is known.
    """

    path: str = ""
    modules: tuple[tuple[str, type[nn.Module]], ...] = ()
    calls: tuple[str, ...] = ()
    source: str = ""


@dataclass
class Facts:
    """What is known of a forward node.

    Attributes:
        origin: where it comes from.
        operation: its entry in the vocabulary; ``None`` for inputs and constants.
        kind: what relevance does there.
        operands: the arguments that carry signal, as (schema name, node), in order.
        signal: whether it carries values of an input.
        integer: whether it is an input of integers.
        batch: for an input, which of its axes is the batch; ``None``: all inputs together are one item.
        fixed: for an input, whether its graph is of one size of the batch alone.
        source: for an embedding lookup, the input that it looks up.
        part_of: for a lookup of a part of joined numbers, the name of the lookup in the model; else empty.
        shape: its shape, as far as the capture leaves it no choice: ``None`` for an axis, or as a whole, that is free.
        nonnegative: whether it is known to have no negative element.
        padded: whether a part of it carries no signal: padding, or a concatenated constant.
        filled: whether padding in it may hold other values than zero.
        parametric: whether it is a layer, as its operation says.
        layers: whether a layer lies between it and an input, itself included.
        first: whether it is a layer with no other before it.
        bound: how it is bounded.
        gate: for a gate, the position of the operand that is the gate.
        values: for a product, the position of the operand that holds the values.
        join: for a join, its branches.
        after_joins: the most joins that lie on a way from an input to it.
        stride: by how much space is reduced from an input to it, as far as strides, windows and factors say.
        classifier: whether it belongs to the head that reads the classes off the features.
        activated: whether it is a layer whose output goes into an activation or a gate and nowhere else.
        overlaps: whether it is a convolution whose windows overlap.
        rule: its rule, and ``reason`` says who chose it.
        norm_behind, norm_before: the batch norm that a linear operation's rule sees as a part of it.
    """

    origin: Origin
    operation: Operation | None = None
    kind: Kind = Kind.CONSTANT
    operands: tuple[tuple[str, fx.Node], ...] = ()
    signal: bool = False
    integer: bool = False
    batch: int | None = 0
    fixed: bool = False
    source: fx.Node | None = None
    part_of: str = ""
    shape: tuple[int | None, ...] | None = None
    nonnegative: bool = False
    padded: bool = False
    filled: bool = False
    parametric: bool = False
    layers: bool = False
    first: bool = False
    bound: Bound = Bound.NONE
    gate: int | None = None
    values: int | None = None
    join: Any = None
    after_joins: int = 0
    stride: float = 1
    classifier: bool = False
    activated: bool = False
    overlaps: bool = False
    rule: Rule | None = None
    reason: str = ""
    norm_behind: fx.Node | None = None
    norm_before: fx.Node | None = None


@dataclass
class Emitted:
    """What a node of the relevance graph belongs to.

    Attributes:
        node: the name of the forward node whose relevance it propagates.
        rule: the rule that emitted it.
        role: ``"start"``, ``"step"`` for a step of the rule, ``"relevance"`` for relevance
            that it hands on, ``"result"`` for what is returned beside relevance.
        value: for relevance, the name of the forward value that it belongs to.
    """

    node: str
    rule: str
    role: str
    value: str = ""


def facts(node: fx.Node) -> Facts:
    """The facts of a forward node."""
    node_facts: Facts = node.meta[KEY]
    return node_facts


def has_facts(node: fx.Node) -> bool:
    """Whether ``node`` is a forward node with facts."""
    return isinstance(node.meta.get(KEY), Facts)


def rule_label(node_facts: Facts) -> str:
    """What emitted code calls the rule of a node; where relevance is only moved, the node's kind."""
    return type(node_facts.rule).__name__ if node_facts.rule else str(node_facts.kind)


def operation_of(node_facts: Facts) -> Operation:
    """The vocabulary's entry; what carries signal has one."""
    assert node_facts.operation is not None
    return node_facts.operation


def rule_of(node_facts: Facts) -> Rule:
    """The rule that was assigned."""
    assert node_facts.rule is not None
    return node_facts.rule
