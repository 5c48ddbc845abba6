"""Rules that are no shares but derivatives: gradients, guided backpropagation, deconvolution.

They do not conserve; the ledger tells the difference under ``gradient``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fxlrp.rules.rule import GRADIENT, Ask, Rule, Shares
from fxlrp.steps.primitives import above_zero, positive
from fxlrp.vocabulary.operation import Kind


class Gradient(Rule):
    """The derivative, ``R_i = Σ_j R_j ∂z_j/∂x_i``, of any operation (Simonyan et al., ICLR Workshop 2014)."""

    @classmethod
    def fits(cls, kind: Kind, operation: str = "") -> bool:
        return True

    def __call__(self, relevance: Tensor, back: Callable[[Tensor], list[Tensor]]) -> Shares:
        """Share out ``relevance``; ``back`` is the transposed derivative, one tensor per operand."""
        return Shares(list(back(relevance)), rest=GRADIENT)

    def at(self, relevance: Any, ask: Ask) -> Shares:
        return self(relevance, ask("derivative"))


class ReLUGuidedBackprop(Rule):
    """Guided backpropagation at a ReLU: what is positive, where the input was (Springenberg et al., ICLR 2015)."""

    operations = ("relu",)
    needs = ("x",)

    def __call__(self, relevance: Tensor, x: Tensor) -> Shares:
        """Share ``relevance`` out over ``x``."""
        return Shares([positive(relevance) * above_zero(x)], rest=GRADIENT)


class ReLUDeconvNet(Rule):
    """DeconvNet at a ReLU: what is positive (Zeiler and Fergus, ECCV 2014)."""

    operations = ("relu",)
    needs = ("x",)

    def __call__(self, relevance: Tensor, x: Tensor) -> Shares:
        """Share ``relevance`` out over ``x``."""
        return Shares([positive(relevance)], rest=GRADIENT)
