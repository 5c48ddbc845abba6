"""Rules for the product of two signals: a gate and what it lets through."""

from __future__ import annotations

from torch import Tensor

from fxlrp.rules.rule import Rule, Shares


class GateRule(Rule):
    """Base of the rules for gates."""

    keeps_sign = True

    def __call__(self, relevance: Tensor, *, gate: int | None) -> Shares:
        """Share ``relevance`` of the product out over its two operands.

        ``gate`` is the position of the operand that is the gate (a bounded factor), or
        ``None`` where neither can be told to be one.
        """
        raise NotImplementedError


class ToSignal(GateRule):
    """The signal receives all, the gate nothing: the gate is held constant.

    "Signal takes all" of Arras et al. (WASSA 2017). Where neither operand is bounded, half each.
    """

    def __call__(self, relevance: Tensor, *, gate: int | None) -> Shares:
        if gate is None:
            half = 0.5 * relevance
            return Shares([half, half])
        return Shares([relevance, None] if gate == 1 else [None, relevance])


class Halves(GateRule):
    """Half to each operand, whatever they are (Achtibat et al., AttnLRP, ICML 2024, Eq. 15)."""

    def __call__(self, relevance: Tensor, *, gate: int | None) -> Shares:
        half = 0.5 * relevance
        return Shares([half, half])
