"""Splits: how the relevance of an add is shared between its operands.

``h_s`` and ``h_m`` are the operands (skip and residual in a residual block); the splits
are symmetric in them, so a merge of two equal branches uses them as well.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.rule import STABILIZER, Ask, Rule, Shares, fitted
from fxlrp.steps.addition import gamma_split, kept_by_stabilizer, ratio_split, signed_split
from fxlrp.vocabulary.operation import Kind


class SplitRule(Rule):
    """Base of the splits."""

    kinds = (Kind.JOIN,)

    needs_support = False
    """Whether the split asks where its operands carry signal."""

    needs_sign = False
    """Whether the split asks for terms of a sum: of a difference, the second one negated."""

    @abstractmethod
    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        """Share ``relevance`` of the sum out over ``skip`` and ``residual``.

        All are like the sum, or broadcast to it. A support has ones where an operand
        carries signal and zeros in padding; ``None``: signal everywhere.
        """

    def at(self, relevance: Tensor, ask: Ask) -> Shares:
        terms = [ask("skip"), ask("residual")]
        supports = {name: ask(name) for name in ("skip_support", "residual_support")} if self.needs_support else {}
        skip = ask("skip_position")
        if self.needs_sign and ask("subtracts"):
            terms[1 - skip] = -terms[1 - skip]  # the second operand, wherever it is among the terms
        shares = fitted(self(relevance, *terms, **supports), ask, (skip, 1 - skip))
        shares.operands = shares.operands[::-1] if skip else shares.operands
        return shares


class RatioSplit(SplitRule):
    """``R_s = R |h_s| / (|h_m| + |h_s|)``, ``R_m = R − R_s`` (Otsuki et al., ECCV 2024, Eq. 5).

    Where both operands are zero each gets half, except that padding gets nothing.
    """

    needs_support = True
    keeps_sign = True

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        shares = ratio_split(relevance, skip, residual, skip_support, residual_support)
        return Shares([shares[0], shares[1]])


class SymmetricSplit(SplitRule):
    """Half of the relevance to each operand (Otsuki et al., ECCV 2024, Eq. 4)."""

    keeps_sign = True

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        half = 0.5 * relevance
        return Shares([half, half])


class SignedSplit(SplitRule):
    """``R_s = R h_s / (h_s + h_m + ε sign)``: the ε rule for an addition (Bach et al., 2015, Eq. 58).

    What a sum of exactly zero holds is absorbed.
    """

    needs_sign = True

    def __init__(self, epsilon: float = 1e-6) -> None:
        if not epsilon > 0:
            raise RuleError(f"the signed split needs a positive epsilon, not {epsilon!r}")
        self.epsilon = epsilon

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        terms = relevance, skip, residual, self.epsilon
        shares = signed_split(*terms)
        return Shares([shares[0], shares[1]], {STABILIZER: lambda: kept_by_stabilizer(*terms)})


class GammaSplit(SplitRule):
    """``R_s = R (h_s + γ h_s^±) / (h_s + h_m + γ (h_s^± + h_m^±))``: the γ rule for an addition.

    ``^±`` is the part with the sign of the sum. With γ = 0 it is :class:`SignedSplit` without a stabilizer. With a
    large γ only operands with the sign of the sum receive. Where operands cancel, the shares of the signed split grow
    without bound; here none exceeds 1 + 1/γ times the relevance. Where both are zero each gets half. The γ rule is
    that of Montavon et al. (LNCS 11700, 2019), for outputs of both signs.

    Args:
        gamma: γ, more than 0.
    """

    needs_sign = True

    def __init__(self, gamma: float = 0.1) -> None:
        if not 0 < gamma < float("inf"):
            raise RuleError(f"the gamma split needs a positive, finite gamma, not {gamma!r}")
        self.gamma = gamma

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        shares = gamma_split(relevance, skip, residual, self.gamma)
        return Shares([shares[0], shares[1]])


class ResidualOnly(SplitRule):
    """All of the relevance to the residual branch, nothing to the skip.

    At identity skips: "projections only", variants (i) and (iii) of Otsuki et al. (ECCV 2024, Table 2).
    """

    keeps_sign = True

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        return Shares([None, relevance])


class SkipOnly(SplitRule):
    """All of the relevance to the skip, nothing to the residual branch; for ablations."""

    keeps_sign = True

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        return Shares([relevance, None])


class FixedSplit(SplitRule):
    """A fixed proportion, for ablations: ``R_s = λ R`` to the skip, ``R_m = (1 − λ) R`` to the residual branch.

    Args:
        skip: λ, between 0 and 1.
    """

    keeps_sign = True

    def __init__(self, skip: float = 0.5) -> None:
        if not 0 <= skip <= 1:
            raise RuleError(f"the skip's proportion lies between 0 and 1; it is {skip!r}")
        self.skip = skip

    def __call__(
        self, relevance: Tensor, skip: Tensor, residual: Tensor, *,
        skip_support: Tensor | None = None, residual_support: Tensor | None = None,
    ) -> Shares:
        to_skip = self.skip * relevance
        return Shares([to_skip, relevance - to_skip])


SPLITS: dict[str, SplitRule] = {
    "ratio": RatioSplit(),
    "symmetric": SymmetricSplit(),
    "signed": SignedSplit(),
    "gamma": GammaSplit(),
    "residual": ResidualOnly(),
    "skip": SkipOnly(),
}
"""The splits that ``compile(split=…)`` knows by name."""
