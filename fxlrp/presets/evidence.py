"""The default: evidence for a class and against it, in models of all kinds."""

from __future__ import annotations

from dataclasses import replace

from fxlrp.presets.preset import SPACELESS, Preset
from fxlrp.rules.linear import Absolute, Epsilon, Gamma, WPlus
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import Bilinear, SoftmaxTaylor, ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.selection import Winner
from fxlrp.rules.split import GammaSplit, SignedSplit

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
_RECURRENT = Recurrent(_BOUNDED, GammaSplit(1.0))

_ATTENTION = replace(
    _SIGNED,
    linear=Gamma(0.05, bias="absorb"),
    classifier=_SIGNED.linear,
    activated=_SIGNED.linear,
    split=GammaSplit(0.1),
    overlapping=Absolute(),
    tokens=_TOKENS,
)

EVIDENCE = Preset(
    "evidence",
    linear=Absolute(),
    first_convolution=WPlus(),
    start="log_odds",
    classifier=_CLASSIFIER,
    coarse=(SPACELESS, _BOUNDED),
    recurrent=_RECURRENT,
    attention=replace(_ATTENTION, without_pictures=replace(_ATTENTION, overlapping=_BOUNDED)),
    without_pictures=Preset(
        "evidence",
        linear=_BOUNDED,
        classifier=_CLASSIFIER,
        split=GammaSplit(1.0),
        recurrent=_RECURRENT,
        norm=NormEpsilon(1e-6),
        batch_norm=Fold(),
    ),
)
"""ε = 0 at the classifier, so that evidence against a class counts, its bias shared evenly. Classes start at their
log-odds.

- Pictures: γ = 1 in recurrent layers and in hidden layers of a head, |x||w| below; the first convolution at an input
  of ones.
- Tables, series, tokens: the sign of an input counts; γ = 1 in all layers and at joins, norms at constant deviation.
- With attentions: norms at constant deviation, and a little γ at joins and in the layers whose output is added or
  attended to, which bounds signed sums; ε in the others, and in all where tokens are looked up. There relevance passes
  the attention weights as well, which decide what a next token is copied from. Convolutions whose windows overlap, such
  as those of a stem, stay bounded as they are without attentions: signed sums of one after the other grow without end.
"""
