"""The rules: how the relevance of an operation's result is shared between its operands."""

from fxlrp.rules.gate import GateRule, Halves, ToSignal
from fxlrp.rules.join import RatioSplit, ResidualOnly, SignedSplit, SplitRule, SymmetricSplit
from fxlrp.rules.linear import Epsilon, LinearRule, WPlus, ZPlus
from fxlrp.rules.norm import NormEpsilon
from fxlrp.rules.product import Bilinear, ProductRule, SoftmaxTaylor, ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass, Rule, Shares
from fxlrp.rules.selection import SelectionRule, WindowAverage, Winner

__all__ = [
    "Bilinear", "Epsilon", "GateRule", "Halves", "LinearRule", "NormEpsilon", "Pass", "ProductRule", "RatioSplit",
    "Recurrent", "ResidualOnly", "Rule", "SelectionRule", "Shares", "SignedSplit", "SoftmaxTaylor", "SplitRule",
    "SymmetricSplit", "ThroughValues", "ToSignal", "WPlus", "WindowAverage", "Winner", "ZPlus",
]  # fmt: skip
