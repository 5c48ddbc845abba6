"""What a preset is: a rule for every kind of operation, under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from fxlrp.common.errors import RuleError
from fxlrp.rules.gate import ToSignal
from fxlrp.rules.linear import ZPlus
from fxlrp.rules.product import ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass, Rule
from fxlrp.rules.selection import WindowAverage
from fxlrp.rules.split import RatioSplit
from fxlrp.vocabulary import Kind

SPACELESS = 2**30
"""The stride of a linear layer that no axis of space reaches."""


class Served(NamedTuple):
    """The operations that a field of a preset has the rule for.

    Attributes:
        kind: their kind.
        operation: the name of the only one; ``""``: all of the kind that have no field of their own.
        optional: whether the rule may be ``None``, another field's rule being taken.
    """

    kind: Kind
    operation: str = ""
    optional: bool = False


def serves(kind: Kind, operation: str = "", *, optional: bool = False) -> dict[str, Served]:
    """The metadata of a field: which operations its rule is for, as :class:`Served` has it."""
    return {"served": Served(kind, operation, optional)}


@dataclass(frozen=True)
class Preset:
    """A rule for every kind of operation.

    A rule must be of a family that its kind takes, or ``Gradient``.

    Attributes:
        name: the name that it is asked for by.
        linear: the rule of linear operations.
        convolution: that of convolutions; ``None``: as ``linear``.
        pooling: that of linear operations without parameters: averages, sums, resizing; ``None``: as ``linear``.
        first: the rule of the first layers, those with no layer before them; ``None``: as the others.
        first_convolution: that of first layers that are convolutions; ``None``: as ``first``.
        classifier: the rule of the layer that reads the classes off the features; ``None``: as the others.
        late: ``(n, rule)``: the rule of linear operations after the n-th join; ``None``: as the others.
        coarse: ``(stride, rule)``: the rule of linear operations where space is reduced by at least so much, or gone,
            such as 16 for the last two stages of a ResNet and hidden layers of a head, and :data:`SPACELESS` for
            layers that no axis of space reaches; ``None``: as the others.
        activated: the rule of layers whose output goes into an activation or a gate, such as the first layer of a
            transformer's MLP; ``None``: as the others.
        overlapping: the rule of convolutions whose windows overlap, as those of patches and of single places do not;
            ``None``: as the others.
        selection: the rule of max pooling.
        split: the rule of joins.
        gate: the rule of elementwise products of two signals.
        product: the rule of matrix products of two signals, and of attention.
        recurrent: the rule of recurrent layers.
        norm: the rule of normalisations.
        batch_norm: the rule of batch norm.
        softmax: the rule of a softmax, where relevance passes one.
        pointwise: the rule of other pointwise operations.
        attention: the preset that takes the place of this one in models with products of two signals, as attentions
            are; ``None``: this one.
        tokens: the preset that takes its place again where such a model looks token numbers up in an embedding;
            ``None``: this one.
        without_pictures: the preset that takes the place of this one, or of that for attentions or tokens, in models of
            tables, series and tokens: those without a convolution or pool over two axes or more; ``None``: this one.
        start: what ``start="auto"`` means for the logits of several classes, ``"probability"`` or ``"log_odds"``.
        rules: exceptions, by name pattern, module type, operation or kind of join, as
            ``compile(rules=…)`` takes them.

    Raises:
        RuleError: ``late`` or ``coarse`` is no pair of a positive number and a rule, or ``attention``, ``tokens`` or
            ``without_pictures`` no preset.
    """

    name: str
    linear: Rule = field(default_factory=ZPlus, metadata=serves(Kind.LINEAR))
    convolution: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    pooling: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    first: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    first_convolution: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    classifier: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    late: tuple[int, Rule] | None = None
    coarse: tuple[int, Rule] | None = None
    activated: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    overlapping: Rule | None = field(default=None, metadata=serves(Kind.LINEAR, optional=True))
    attention: Preset | None = None
    tokens: Preset | None = None
    without_pictures: Preset | None = None
    selection: Rule = field(default_factory=WindowAverage, metadata=serves(Kind.SELECTION))
    split: Rule = field(default_factory=RatioSplit, metadata=serves(Kind.JOIN))
    gate: Rule = field(default_factory=ToSignal, metadata=serves(Kind.GATE))
    product: Rule = field(default_factory=ThroughValues, metadata=serves(Kind.PRODUCT))
    recurrent: Rule = field(default_factory=Recurrent, metadata=serves(Kind.RECURRENT))
    norm: Rule = field(default_factory=Pass, metadata=serves(Kind.NORMALISATION))
    batch_norm: Rule = field(default_factory=Pass, metadata=serves(Kind.NORMALISATION, "batch_norm"))
    softmax: Rule = field(default_factory=Pass, metadata=serves(Kind.POINTWISE, "softmax"))
    pointwise: Rule = field(default_factory=Pass, metadata=serves(Kind.POINTWISE))
    start: str = "probability"
    rules: Mapping[Any, Rule] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("late", "coarse"):
            value = getattr(self, name)
            pair = isinstance(value, tuple) and len(value) == 2
            if value is not None and not (pair and isinstance(value[0], int) and value[0] is not True and value[0] > 0):
                raise RuleError(f"{name}={value!r}: give a positive number and a rule, such as (16, Gamma(0.25))")
        for name in ("attention", "tokens", "without_pictures"):
            value = getattr(self, name)
            if not isinstance(value, Preset | None):
                raise RuleError(f"{name}={value!r}: give a Preset")

    def rule_of(self, kind: Kind, operation: str) -> Rule:
        """The rule of operations of a kind: that of the operation of this name, where it has a field of its own."""
        by_name = {s.operation: field for field, s in SERVED.items() if s.kind is kind and not s.optional}
        rule: Rule = getattr(self, by_name.get(operation, by_name[""]))
        return rule


SERVED: dict[str, Served] = {f.name: f.metadata["served"] for f in fields(Preset) if "served" in f.metadata}
"""The fields of a preset that hold a rule, and what each is for."""
