"""Rules for transformers."""

from __future__ import annotations

from fxlrp.presets.preset import Preset
from fxlrp.rules.gate import Halves
from fxlrp.rules.linear import Epsilon
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import Bilinear, SoftmaxTaylor, ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.selection import Winner
from fxlrp.rules.split import SignedSplit

_EPSILON = Epsilon(1e-6, bias="absorb")

ATTNLRP = Preset(
    "attnlrp",
    linear=_EPSILON,
    selection=Winner(),
    split=SignedSplit(1e-6),
    gate=Halves(),
    product=Bilinear(Epsilon(1e-6)),
    recurrent=Recurrent(_EPSILON, SignedSplit(1e-6)),
    norm=NormEpsilon(1e-6),
    batch_norm=Fold(),
    softmax=SoftmaxTaylor(),
)
"""Achtibat et al. (ICML 2024): ε through every factor of an attention, its softmax included."""

CP_LRP = Preset(
    "cp_lrp",
    linear=_EPSILON,
    selection=Winner(),
    split=SignedSplit(1e-6),
    product=ThroughValues(Epsilon(1e-6)),
    recurrent=Recurrent(_EPSILON, SignedSplit(1e-6)),
    norm=NormEpsilon(1e-6),
    batch_norm=Fold(),
)
"""Ali et al. (ICML 2022): attention weights and deviations held constant; of a SwiGLU each factor has a half.

LXT's ``cp_LRP`` holds the gate of a SwiGLU constant.
"""
