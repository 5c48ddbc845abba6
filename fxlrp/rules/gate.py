"""Rules for the product of two signals: a gate and what it lets through."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fxlrp.rules.rule import Rule, Shares
from fxlrp.vocabulary.operation import Kind


class GateRule(Rule):
    """Base of the rules for gates."""

    kinds = (Kind.GATE,)
    needs = ("gate", "statistic")
    keeps_sign = True

    @abstractmethod
    def __call__(self, relevance: Tensor, *, gate: int | None, statistic: bool = False) -> Shares:
        """Share ``relevance`` of the product out over its two operands.

        ``gate`` is the position of the operand that is the gate (a bounded factor), or
        ``None`` where neither can be told to be one; ``statistic`` says that it is a
        statistic of the signal, as in a norm that is spelled out.
        """


class ToSignal(GateRule):
    """The signal receives all, the gate nothing: the gate is held constant.

    "Signal takes all" of Arras et al. (WASSA 2017). Where neither operand is bounded, half each.
    """

    def __call__(self, relevance: Tensor, *, gate: int | None, statistic: bool = False) -> Shares:
        if gate is None:
            half = 0.5 * relevance
            return Shares([half, half])
        return Shares([relevance, None] if gate == 1 else [None, relevance])


class Halves(GateRule):
    """Half to each operand (Achtibat et al., AttnLRP, ICML 2024, Eq. 15).

    But a norm's statistic is held constant, as in their Prop. 3.4.
    """

    def __call__(self, relevance: Tensor, *, gate: int | None, statistic: bool = False) -> Shares:
        if statistic:
            return ToSignal()(relevance, gate=gate)
        half = 0.5 * relevance
        return Shares([half, half])
