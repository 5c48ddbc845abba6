"""The default, and the rules of Otsuki et al. (ECCV 2024)."""

from __future__ import annotations

from fxlrp.presets.preset import Preset
from fxlrp.rules.linear import Epsilon, Gamma, WPlus, ZPlus
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.selection import WindowAverage, Winner
from fxlrp.rules.split import GammaSplit, SignedSplit

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
)
"""γ in convolutions, ε in linear layers, no part to biases; for convolutional networks."""

EVIDENCE = Preset(
    "evidence",
    first=WPlus(),
    start="log_odds",
    classifier=Epsilon(0, vanishing="rescale"),
    coarse=(16, Gamma(1.0, stabilizer=0, vanishing="rescale")),
    attention=Preset(
        "evidence",
        linear=Gamma(0.05, bias="absorb"),
        activated=Epsilon(1e-6, bias="absorb"),
        classifier=Epsilon(1e-6, bias="absorb"),
        selection=Winner(),
        split=GammaSplit(0.1),
        product=ThroughValues(Epsilon(1e-6)),
        recurrent=Recurrent(Epsilon(1e-6, bias="absorb"), SignedSplit(1e-6)),
        norm=NormEpsilon(1e-6),
        batch_norm=Fold(),
    ),
)
"""ε = 0 at the classifier, so that evidence against a class counts; γ from stride 16 on, z⁺ below. With attentions: a
little γ in all layers and joins, norms at constant deviation. Classes start at their log-odds."""

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
)
"""The mixture of rules of its Table C: ε after the eighth bottleneck, α1β0 (= z⁺) before."""
