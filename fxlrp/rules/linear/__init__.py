"""The rules for linear operations, and the one mechanism that they share."""

from fxlrp.rules.linear.contributions import Absolute, AlphaBeta, Epsilon, Gamma, Norm, ZPlus
from fxlrp.rules.linear.first import Flat, WPlus, WSquare, ZBox
from fxlrp.rules.linear.mechanism import Layer, LinearRule, Part

__all__ = [
    "Absolute", "AlphaBeta", "Epsilon", "Flat", "Gamma", "Layer", "LinearRule", "Norm", "Part", "WPlus",
    "WSquare", "ZBox", "ZPlus",
]  # fmt: skip
