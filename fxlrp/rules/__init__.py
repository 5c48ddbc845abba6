"""The rules: how the relevance of an operation's result is shared between its operands."""

from fxlrp.rules.gate import GateRule, Halves, ToSignal
from fxlrp.rules.join import RatioSplit, ResidualOnly, SignedSplit, SplitRule, SymmetricSplit
from fxlrp.rules.linear import Epsilon, LinearRule, WPlus, ZPlus
from fxlrp.rules.rule import Pass, Rule, Shares
from fxlrp.rules.selection import SelectionRule, WindowAverage, Winner

__all__ = [
    "Epsilon", "GateRule", "Halves", "LinearRule", "Pass", "RatioSplit", "ResidualOnly", "Rule", "SelectionRule",
    "Shares", "SignedSplit", "SplitRule", "SymmetricSplit", "ToSignal", "WPlus", "WindowAverage", "Winner", "ZPlus",
]  # fmt: skip
