"""z⁺ everywhere, and the rules of Otsuki et al. (ECCV 2024)."""

from __future__ import annotations

from dataclasses import replace

from fxlrp.presets.preset import Preset
from fxlrp.rules.linear import Epsilon, Gamma, WPlus, ZPlus
from fxlrp.rules.normalisation import NormEpsilon
from fxlrp.rules.selection import WindowAverage

_RELEASED = ZPlus(stabilizer=1e-5)
_RELEASED_CONVOLUTION = ZPlus(stabilizer=1e-5, bias="absorb", signed_bias=True)
_RELEASED_FIRST = WPlus(stabilizer=1e-5, bias="absorb", signed_bias=True)
_RELEASED_AVERAGE = WindowAverage(_RELEASED, kernel=(2, 2))

CONSERVING = Preset("conserving", first=WPlus())
"""z⁺ everywhere; absorbs nothing."""

CONSERVING_GAMMA = Preset(
    "conserving_gamma",
    linear=Epsilon(),
    convolution=Gamma(0.25, stabilizer=0, vanishing="rescale"),
    pooling=ZPlus(),
    first=WPlus(),
    attention=replace(CONSERVING, name="conserving_gamma"),
)
"""γ in convolutions, ε in linear layers, no part to biases; for convolutional networks. With attentions, where it
would have no bound, as ``conserving``."""

OTSUKI2024 = Preset(
    "otsuki2024",
    linear=_RELEASED,
    convolution=_RELEASED_CONVOLUTION,
    first=_RELEASED_FIRST,
    selection=_RELEASED_AVERAGE,
)
"""The released code: a convolution's bias is part of its denominator, a linear layer's is not; 2 × 2
averages stand for every max pool."""

OTSUKI2024_MIXTURE = Preset(
    "otsuki2024_mixture",
    linear=_RELEASED_CONVOLUTION,
    first=_RELEASED_FIRST,
    late=(8, Epsilon(1e-6)),
    selection=_RELEASED_AVERAGE,
    norm=NormEpsilon(1e-6),
)
"""The mixture of rules of its Table C: ε after the eighth bottleneck, α1β0 (= z⁺) before."""
