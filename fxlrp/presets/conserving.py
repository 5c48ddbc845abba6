"""The default, and the rules of Otsuki et al. (ECCV 2024)."""

from __future__ import annotations

from dataclasses import replace

from fxlrp.presets.preset import SPACELESS, Preset
from fxlrp.rules.linear import Absolute, Epsilon, Gamma, WPlus, ZPlus
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import Bilinear, SoftmaxTaylor, ThroughValues
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
    attention=replace(CONSERVING, name="conserving_gamma"),
)
"""γ in convolutions, ε in linear layers, no part to biases; for convolutional networks. With attentions, where it
would have no bound, as ``conserving``."""

_SIGNED = Preset(
    "evidence",
    linear=Epsilon(1e-6, bias="absorb"),
    selection=Winner(),
    split=GammaSplit(0.02),
    product=ThroughValues(Epsilon(1e-6)),
    recurrent=Recurrent(Epsilon(1e-6, bias="absorb"), SignedSplit(1e-6)),
    norm=NormEpsilon(1e-6),
    batch_norm=Fold(),
)

_TOKENS = replace(_SIGNED, product=Bilinear(Epsilon(1e-6)), softmax=SoftmaxTaylor())

_CLASSIFIER = Epsilon(0, bias="share", vanishing="rescale")
_BOUNDED = Gamma(1.0, stabilizer=0, vanishing="rescale")

EVIDENCE = Preset(
    "evidence",
    linear=Absolute(),
    first_convolution=WPlus(),
    start="log_odds",
    classifier=_CLASSIFIER,
    coarse=(SPACELESS, _BOUNDED),
    attention=replace(
        _SIGNED,
        linear=Gamma(0.05, bias="absorb"),
        classifier=_SIGNED.linear,
        activated=_SIGNED.linear,
        split=GammaSplit(0.1),
        tokens=_TOKENS,
    ),
    without_pictures=Preset(
        "evidence",
        linear=_BOUNDED,
        classifier=_CLASSIFIER,
        split=GammaSplit(1.0),
        recurrent=Recurrent(_BOUNDED, GammaSplit(1.0)),
        norm=NormEpsilon(1e-6),
        batch_norm=Fold(),
    ),
)
"""ε = 0 at the classifier, so that evidence against a class counts, its bias shared evenly; γ = 1 in hidden layers of a
head, |x||w| below. Of tables, series and tokens the sign of an input counts: γ = 1 in all layers, recurrent ones too,
and at joins. With attentions: norms at constant deviation, and a little γ at joins and in the layers whose output is added or
attended to, which bounds signed sums; ε in the others, and in all where tokens are looked up. There relevance passes
the attention weights as well, which decide what a next token is copied from. Classes start at their log-odds."""

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
