"""The rules: how the relevance of an operation's result is shared between its operands."""

from fxlrp.rules import split as join  # noqa: F401, documented as fxlrp.rules.join
from fxlrp.rules.gate import GateRule, Halves, ToSignal
from fxlrp.rules.gradient import Gradient, ReLUDeconvNet, ReLUGuidedBackprop
from fxlrp.rules.linear import (
    Absolute,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Layer,
    LinearRule,
    Norm,
    Part,
    WPlus,
    WSquare,
    ZBox,
    ZPlus,
)
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import Bilinear, ProductRule, SoftmaxTaylor, ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass, Rule, Shares
from fxlrp.rules.selection import SelectionRule, WindowAverage, Winner
from fxlrp.rules.split import (
    FixedSplit,
    GammaSplit,
    RatioSplit,
    ResidualOnly,
    SignedSplit,
    SkipOnly,
    SplitRule,
    SymmetricSplit,
)
from fxlrp.steps import primitives  # noqa: F401, documented as fxlrp.rules.primitives
from fxlrp.steps.primitives import negative, positive, primitive

__all__ = [
    "Absolute", "AlphaBeta", "Bilinear", "Epsilon", "FixedSplit", "Flat", "Fold", "Gamma", "GammaSplit", "GateRule",
    "Gradient", "Halves", "Layer", "LinearRule", "Norm", "NormEpsilon", "Part", "Pass", "ProductRule", "RatioSplit",
    "ReLUDeconvNet", "ReLUGuidedBackprop", "Recurrent", "ResidualOnly", "Rule", "SelectionRule", "Shares",
    "SignedSplit", "SkipOnly", "SoftmaxTaylor", "SplitRule", "SymmetricSplit", "ThroughValues", "ToSignal", "WPlus",
    "WSquare", "WindowAverage", "Winner", "ZBox", "ZPlus", "negative", "positive", "primitive",
]  # fmt: skip
