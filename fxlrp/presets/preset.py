"""What a preset is: a rule for every kind of operation, under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fxlrp.rules.gate import ToSignal
from fxlrp.rules.linear import ZPlus
from fxlrp.rules.product import ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass, Rule
from fxlrp.rules.selection import WindowAverage
from fxlrp.rules.split import RatioSplit


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
        late: ``(n, rule)``: the rule of linear operations after the n-th join; ``None``: as the others.
        selection: the rule of max pooling.
        split: the rule of joins.
        gate: the rule of elementwise products of two signals.
        product: the rule of matrix products of two signals, and of attention.
        recurrent: the rule of recurrent layers.
        norm: the rule of normalisations.
        batch_norm: the rule of batch norm.
        softmax: the rule of a softmax, where relevance passes one.
        pointwise: the rule of other pointwise operations.
        rules: exceptions, by name pattern, module type, operation or kind of join, as
            ``compile(rules=…)`` takes them.
    """

    name: str
    linear: Rule = field(default_factory=ZPlus)
    convolution: Rule | None = None
    pooling: Rule | None = None
    first: Rule | None = None
    first_convolution: Rule | None = None
    late: tuple[int, Rule] | None = None
    selection: Rule = field(default_factory=WindowAverage)
    split: Rule = field(default_factory=RatioSplit)
    gate: Rule = field(default_factory=ToSignal)
    product: Rule = field(default_factory=ThroughValues)
    recurrent: Rule = field(default_factory=Recurrent)
    norm: Rule = field(default_factory=Pass)
    batch_norm: Rule = field(default_factory=Pass)
    softmax: Rule = field(default_factory=Pass)
    pointwise: Rule = field(default_factory=Pass)
    rules: Mapping[Any, Rule] = field(default_factory=lambda: MappingProxyType({}))
