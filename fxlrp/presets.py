"""Presets: a rule for every kind of operation, under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F

from fxlrp.errors import RuleError
from fxlrp.rules.gate import GateRule, Halves, ToSignal
from fxlrp.rules.join import RatioSplit, SignedSplit, SplitRule
from fxlrp.rules.linear import Epsilon, LinearRule, WPlus, ZPlus
from fxlrp.rules.norm import NormEpsilon
from fxlrp.rules.product import Bilinear, ProductRule, SoftmaxTaylor, ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass, Rule
from fxlrp.rules.selection import SelectionRule, WindowAverage, Winner


@dataclass(frozen=True)
class Preset:
    """A rule for every kind of operation.

    Attributes:
        name: the name that it is asked for by.
        linear: the rule of linear operations.
        first: the rule of the first layers, those with no layer before them; ``None``: as ``linear``.
        late: ``(n, rule)``: the rule of linear operations after the n-th join; ``None``: as ``linear``.
        selection: the rule of max pooling.
        split: the rule of joins.
        gate: the rule of elementwise products of two signals.
        product: the rule of matrix products of two signals, and of attention.
        recurrent: the rule of recurrent layers.
        norm: the rule of normalisations.
        softmax: the rule of a softmax, where relevance passes one.
        rules: exceptions, by name pattern, module type or operation, as ``compile(rules=…)`` takes them.
    """

    name: str
    linear: LinearRule = field(default_factory=ZPlus)
    first: LinearRule | None = None
    late: tuple[int, LinearRule] | None = None
    selection: SelectionRule = field(default_factory=WindowAverage)
    split: SplitRule = field(default_factory=RatioSplit)
    gate: GateRule = field(default_factory=ToSignal)
    product: ProductRule = field(default_factory=ThroughValues)
    recurrent: Recurrent = field(default_factory=Recurrent)
    norm: Rule = field(default_factory=Pass)
    softmax: Rule = field(default_factory=Pass)
    rules: Mapping[Any, Rule] = field(default_factory=lambda: MappingProxyType({}))


_RELEASED = ZPlus(stabilizer=1e-5)
_EPSILON = Epsilon(1e-6, bias="absorb")
_RELEASED_AVERAGE = WindowAverage(_RELEASED, kernel=(2, 2))

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # z⁺ everywhere; absorbs nothing.
        Preset("conserving", first=WPlus()),
        # The released code of Otsuki et al. (ECCV 2024): a convolution's bias is part of its
        # denominator, a linear layer's is not; 2 × 2 averages stand for every max pool.
        Preset(
            "otsuki2024",
            linear=ZPlus(stabilizer=1e-5, bias="absorb"),
            first=WPlus(stabilizer=1e-5, bias="absorb"),
            selection=_RELEASED_AVERAGE,
            rules=MappingProxyType({F.linear: _RELEASED}),
        ),
        # The mixture of rules of Table C there: ε after the eighth bottleneck, α1β0 (= z⁺) before.
        Preset(
            "otsuki2024_mixture",
            linear=ZPlus(stabilizer=1e-5, bias="absorb"),
            first=WPlus(stabilizer=1e-5, bias="absorb"),
            late=(8, Epsilon(1e-6)),
            selection=_RELEASED_AVERAGE,
        ),
        # Achtibat et al. (ICML 2024): ε through every factor of an attention, its softmax included.
        Preset(
            "attnlrp",
            linear=_EPSILON,
            selection=Winner(),
            split=SignedSplit(1e-6),
            gate=Halves(),
            product=Bilinear(Epsilon(1e-6)),
            recurrent=Recurrent(_EPSILON, SignedSplit(1e-6)),
            norm=NormEpsilon(1e-6),
            softmax=SoftmaxTaylor(),
        ),
        # Ali et al. (ICML 2022): attention weights, deviations and gates held constant.
        Preset(
            "cp_lrp",
            linear=_EPSILON,
            selection=Winner(),
            split=SignedSplit(1e-6),
            product=ThroughValues(Epsilon(1e-6)),
            recurrent=Recurrent(_EPSILON, SignedSplit(1e-6)),
            norm=NormEpsilon(1e-6),
        ),
    )
}
"""The presets that ``compile(preset=…)`` knows by name."""


def preset_named(preset: str | Preset) -> Preset:
    """The preset of this name, or the preset itself.

    Raises:
        RuleError: there is none of this name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise RuleError(f"preset={preset!r}: choose one of {', '.join(map(repr, PRESETS))}, or give a Preset")
    return PRESETS[preset]
