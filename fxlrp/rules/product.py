"""Rules for products of two signals: matrix products and attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fxlrp.rules.linear import Epsilon, LinearRule, ZPlus
from fxlrp.rules.rule import BIAS, CONSTANT, STABILIZER, Amount, Ask, Rule, Shares, fitted
from fxlrp.steps.attention import (
    Attention,
    attention_scores,
    expanded,
    finite,
    left_over,
    masked,
    of_rows,
    per_group,
    softmax_rows,
)
from fxlrp.steps.matrix_product import MatrixProduct
from fxlrp.vocabulary.operation import Kind

Factor = Callable[[LinearRule, Tensor], Shares]
"""One factor of a product: shares relevance out over it by a linear rule, the others held constant."""


class ProductRule(Rule):
    """Base of the rules for products of two signals."""

    kinds = (Kind.PRODUCT,)

    rule: LinearRule
    """The linear rule for one factor, the others held constant."""

    @abstractmethod
    def __call__(self, relevance: Tensor, factors: Sequence[Factor], values: int | None) -> Shares:
        """Share ``relevance`` of the product out over its factors.

        ``values`` is the position of the factor that holds the values, the others being
        weights (an attention); ``None`` where that cannot be told.
        """

    def attention(self, relevance: Tensor, ask: Ask) -> Shares:
        """Share ``relevance`` of an attention out; by default through its values, as through those of any product."""
        factors, values = ask("factors"), ask("values")
        if values is None:  # the values are constants, whatever picks among them
            return Shares([None] * len(factors), {CONSTANT: lambda: relevance})
        return self(relevance, factors, values)

    def at(self, relevance: Tensor, ask: Ask) -> Shares:
        factors, values = ask("factors"), ask("values")
        if ask("values_operand") == "input":  # a weight that the model computes for its input is held constant
            return ThroughValues(self.rule)(relevance, factors, values)
        return self.attention(relevance, ask) if ask("values_operand") == "value" else self(relevance, factors, values)


def _among_signals(shares: Shares, carries: Sequence[bool]) -> Shares:
    """Shares for all operands of an operation as shares for those that carry signal."""
    pairs = list(zip(carries, shares.operands, strict=True))
    constants = [share for signal, share in pairs if not signal and share is not None]
    shares.operands = [share for signal, share in pairs if signal]
    if constants:
        shares.absorbed[CONSTANT] = lambda: constants
    return shares


def _halves(rule: LinearRule, relevance: Tensor, factors: Sequence[Factor]) -> Shares:
    """Half of the relevance through each factor."""
    parts = [factor(rule, 0.5 * relevance) for factor in factors]
    shares = Shares([part.only for part in parts])
    for reason in parts[0].absorbed:
        shares.absorbed[reason] = partial(_all, [part.absorbed[reason] for part in parts])
    rescaled = [part.rescaled for part in parts if part.rescaled is not None]
    if rescaled:
        shares.rescaled = partial(_all, rescaled)
    return shares


def _all(amounts: list[Amount]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for amount in amounts:
        kept = amount()
        tensors.extend(kept if isinstance(kept, list) else [kept])
    return tensors


class ThroughValues(ProductRule):
    """Through the values, the weights held constant: ``rule`` with the attention as weights.

    CP-LRP (Ali et al., ICML 2022) holds attention constant too, with the ε rule. Where no
    factor can be told to be weights, half of the relevance goes through each.

    Args:
        rule: the linear rule for the values.
    """

    def __init__(self, rule: LinearRule | None = None) -> None:
        self.rule = ZPlus() if rule is None else rule

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.rule.keeps_sign

    def __call__(self, relevance: Tensor, factors: Sequence[Factor], values: int | None) -> Shares:
        if values is None:
            return _halves(self.rule, relevance, factors)
        shares = factors[values](self.rule, relevance)
        shares.operands = [shares.only if i == values else None for i in range(len(factors))]
        return shares


class Bilinear(ProductRule):
    """Half of the relevance through each factor, by ``rule`` (Achtibat et al., AttnLRP, ICML 2024, Eq. 15).

    An attention passes relevance on to query and key as well, through its softmax by
    :class:`SoftmaxTaylor`.

    Args:
        rule: the linear rule; the paper's is ε.
    """

    def __init__(self, rule: LinearRule | None = None) -> None:
        self.rule = Epsilon() if rule is None else rule

    def __call__(self, relevance: Tensor, factors: Sequence[Factor], values: int | None) -> Shares:
        return _halves(self.rule, relevance, factors)

    def attention(self, relevance: Tensor, ask: Ask) -> Shares:
        return _among_signals(self.through_scores(relevance, ask("attention")), ask("carries"))

    def through_scores(self, relevance: Tensor, attention: Attention) -> Shares:
        """Share ``relevance`` of an attention out over query, key and value."""
        a = attention
        scores = attention_scores(a.query, a.key, a.scale)
        allowed = masked(scores, a.mask, a.causal)
        weights = softmax_rows(allowed)
        value, key = expanded(a.value, weights), expanded(a.key, a.query)

        half = 0.5 * relevance
        to_value = self.rule(MatrixProduct(left=True), value, weights, None, half)
        to_weights = self.rule(MatrixProduct(), weights, value, None, half)
        to_scores = SoftmaxTaylor()(to_weights.only, allowed, weights, dim=-1).only
        half = 0.5 * to_scores
        to_query = self.rule(MatrixProduct(), a.query, key.mT, None, half)
        to_key = self.rule(MatrixProduct(left=True), key.mT, a.query, None, half)
        query, keys, values = to_query.only, to_key.only, to_value.only
        return Shares(
            [query, per_group(keys.mT, a.key.shape), per_group(values, a.value.shape)],
            {
                STABILIZER: lambda: left_over([relevance, to_scores], [values, to_weights.only, query, keys]),
                BIAS: lambda: left_over([to_weights.only], [to_scores]),
            },
        )


class SoftmaxTaylor(Rule):
    """``R_i = x_i (R_i − s_i Σ_j R_j)``: Taylor's expansion of the softmax ``s`` (AttnLRP, Prop. 3.1).

    What the expansion's constant term takes is absorbed as bias.
    """

    operations = ("softmax",)
    needs = ("x", "output", "dim")

    def at(self, relevance: Any, ask: Ask) -> Shares:
        shares = self(relevance, ask("x"), of_rows(ask("output")), dim=ask("dim"))
        return fitted(shares, ask) if ask("broadcasts") else shares

    def __call__(self, relevance: Tensor, x: Tensor, output: Tensor, *, dim: int) -> Shares:
        """Share ``relevance`` of the softmax ``output`` over the axis ``dim`` out over ``x``."""
        share = finite(x) * (relevance - output * relevance.sum(dim=dim, keepdim=True))
        return Shares([share], {BIAS: lambda: relevance - share})
