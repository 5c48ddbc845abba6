"""Rules for max pooling and maxima: who gets the relevance of a window."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from fxlrp.rules.linear import LinearRule, ZPlus
from fxlrp.rules.rule import Ask, Rule, Shares, added, given
from fxlrp.steps.batch_axis import BatchAxis
from fxlrp.steps.pooling import AveragePool
from fxlrp.steps.selection import Extremum, Pool, tiled
from fxlrp.vocabulary.operation import Kind


class SelectionRule(Rule):
    """Base of the rules for max pooling."""

    kinds = (Kind.SELECTION,)
    needs = ("signed", "nonnegative", "support", "filled", "batch_axis", "received_batch_axis")

    @abstractmethod
    def __call__(
        self, pool: Pool, x: Tensor, relevance: Tensor, *,
        nonnegative: bool = False, support: Tensor | None = None, filled: bool = False,
        signed: bool = True, batch_axis: BatchAxis | None = None, received_batch_axis: BatchAxis | None = None,
    ) -> Shares:
        """Share ``relevance``, like the pool's output, out over ``x``, (batch, channels, ...)."""

    def at(self, relevance: Any, ask: Ask) -> Shares:
        pool = ask("bound")
        if isinstance(relevance, list):  # it returns its indices as well
            relevance = added([part for index, part in relevance if index == 0])
        return self(pool, ask("x"), relevance, **given(self.needs, ask))


class Winner(SelectionRule):
    """The winner of each window takes its relevance (Bach et al., PLOS ONE 2015); of equal elements the first."""

    keeps_sign = True

    def __call__(
        self, pool: Pool, x: Tensor, relevance: Tensor, *,
        nonnegative: bool = False, support: Tensor | None = None, filled: bool = False,
        signed: bool = True, batch_axis: BatchAxis | None = None, received_batch_axis: BatchAxis | None = None,
    ) -> Shares:
        return Shares([pool.to_winners(relevance, x)])


class WindowAverage(SelectionRule):
    """A linear rule over the average of each window, "a linear projection" of Otsuki et al.

    Args:
        rule: the linear rule.
        kernel: another window than the pool's own, with its stride (the released code of
            Otsuki et al. takes 2 × 2 for any pool).
    """

    def __init__(self, rule: LinearRule | None = None, kernel: tuple[int, ...] | None = None) -> None:
        self.rule = ZPlus() if rule is None else rule
        self.kernel = kernel

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.rule.keeps_sign

    def __call__(
        self, pool: Pool, x: Tensor, relevance: Tensor, *,
        nonnegative: bool = False, support: Tensor | None = None, filled: bool = False,
        signed: bool = True, batch_axis: BatchAxis | None = None, received_batch_axis: BatchAxis | None = None,
    ) -> Shares:
        if self.kernel is None or isinstance(pool, Extremum):
            windows = pool.windows()
        else:
            x = tiled(x, relevance, self.kernel)
            windows = AveragePool(list(self.kernel), list(self.kernel), [0] * len(self.kernel))
        return self.rule(
            windows, x, None, None, relevance, nonnegative=nonnegative, support=support, filled=filled,
            signed=signed, batch_axis=batch_axis, received_batch_axis=received_batch_axis,
        )
