"""Linear rules that share relevance by what each input contributes, ``x_i w_ji``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.linear.mechanism import Change, Layer, LinearRule, Part, Terms
from fxlrp.steps.primitives import above_zero, below_zero, magnitude, negative, positive, zero


class Epsilon(LinearRule):
    """ε rule: ``R_i = x_i Σ_j w_ji R_j / (z_j + ε sign z_j)`` (Bach et al., PLOS ONE 2015, Eq. 58).

    ``Epsilon(0)`` is LRP-0.

    Args:
        epsilon: ε, the stabilizer.
        bias: as in :class:`LinearRule`.
        vanishing: as in :class:`LinearRule`; with a stabilizer, what outputs of zero hold is absorbed.
    """

    def __init__(self, epsilon: float = 1e-6, *, bias: str = "ignore", vanishing: str = "absorb") -> None:
        super().__init__(stabilizer=epsilon, bias=bias, vanishing=vanishing)

    def __repr__(self) -> str:
        options = {"bias": (self.bias, "ignore"), "vanishing": (self.vanishing, "absorb")}
        told = "".join(f", {name}={value!r}" for name, (value, usual) in options.items() if value != usual)
        return f"{type(self).__name__}({self.stabilizer!r}{told})"

    def parts(self, layer: Layer) -> Sequence[Part]:
        return [Part(layer.term(layer.x), layer.bias)]


class Norm(Epsilon):
    """Each input by its contribution: zennit's name (Anders et al., 2021) for the ε rule where there are no parameters.

    For average pooling, means and sums; for a join the same is ``SignedSplit``.
    """


class ZPlus(LinearRule):
    """z⁺ rule: only positive contributions share the relevance.

    ``z_ij = w⁺_ji x⁺_i + w⁻_ji x⁻_i``; for x ≥ 0 that is Otsuki et al. (ECCV 2024),
    Eqs. 2–3, after Montavon et al. (Pattern Recognition 2017), and α1β0 of Bach et al.
    (PLOS ONE 2015). A bias that is not ignored contributes its positive part.

    Args:
        stabilizer: as in :class:`LinearRule`.
        bias: as in :class:`LinearRule`.
        vanishing: as in :class:`LinearRule`.
        signed_bias: whether a negative bias counts as well, as in the released code of Otsuki et al.
    """

    def __init__(
        self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "rescale", signed_bias: bool = False
    ) -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)
        self.signed_bias = signed_bias

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.bias == "ignore" or not self.signed_bias  # a negative bias could turn a denominator

    def parts(self, layer: Layer) -> Sequence[Part]:
        return [Part(layer.positive(), self.positive_bias(layer))]

    def positive_bias(self, layer: Layer) -> Tensor | None:
        """What the bias contributes."""
        return layer.bias if self.signed_bias else _part(layer.bias, positive)


class Absolute(LinearRule):
    """|x||w| rule: contributions share the relevance by their magnitude, ``z_ij = |x_i w_ji|``.

    Vukadin et al. (ACM TIST 2024), Eq. 6, absLRP. Two products per layer, also for signed inputs, where z⁺ takes
    four. Arguments as in :class:`LinearRule`; a bias that is not ignored contributes its magnitude.
    """

    keeps_sign = True

    def __init__(self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "rescale") -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)

    def parts(self, layer: Layer) -> Sequence[Part]:
        x = layer.x if layer.nonnegative else magnitude(layer.x)
        change = None if layer.weight_nonnegative else magnitude
        return [Part(layer.term(x, change), None if layer.bias is None else magnitude(layer.bias))]


class AlphaBeta(LinearRule):
    """αβ rule: ``R_i = Σ_j (α z⁺_ij / z⁺_j − β z⁻_ij / z⁻_j) R_j`` (Bach et al., PLOS ONE 2015, Eq. 60).

    ``z⁺_ij`` are the positive contributions and ``z⁻_ij`` the negative ones; a bias that is not
    ignored contributes to the side of its sign.

    Args:
        alpha: α, at least zero.
        beta: β = α − 1, at least zero.
        stabilizer: as in :class:`LinearRule`.
        bias: as in :class:`LinearRule`.
        vanishing: as in :class:`LinearRule`.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, *, stabilizer: float = 1e-6, bias: str = "ignore",
        vanishing: str = "rescale",
    ) -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)
        if not (alpha >= 0 and beta >= 0 and abs(alpha - beta - 1) < 1e-9):
            raise RuleError(f"alpha and beta must not be negative and alpha − beta = 1, not {alpha!r} and {beta!r}")
        self.alpha = alpha
        self.beta = beta

    def parts(self, layer: Layer) -> Sequence[Part]:
        up = Part(layer.positive(), _part(layer.bias, positive), self.alpha)
        return [up, Part(layer.negative(), _part(layer.bias, negative), -self.beta)] if self.beta else [up]


class Gamma(LinearRule):
    """γ rule: contributions of the favoured sign count 1 + γ times.

    The original rule (Montavon et al., 2019, in *Explainable AI*, LNCS 11700, Sec. 10.2.3) is meant for inputs
    that are nowhere negative: ``w + γ w⁺``. The generalised one (Andéol et al., 2021) takes any
    input: positive contributions are favoured where the output, ``z_j``, is positive,
    negative ones where it is negative. An output that is exactly zero has no sign, and what it holds vanishes.

    Args:
        gamma: γ, at least zero.
        generalized: whether to take the generalised rule.
        stabilizer: as in :class:`LinearRule`.
        bias: as in :class:`LinearRule`; it is treated as a weight.
        vanishing: as in :class:`LinearRule`; with a stabilizer, what outputs of zero hold is absorbed.
    """

    def __init__(
        self, gamma: float = 0.25, *, generalized: bool = True, stabilizer: float = 1e-6, bias: str = "ignore",
        vanishing: str = "absorb",
    ) -> None:  # fmt: skip
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)
        if not gamma >= 0:
            raise RuleError(f"gamma must be zero or positive, not {gamma!r}")
        self.gamma = gamma
        self.generalized = generalized

    def parts(self, layer: Layer) -> Sequence[Part]:
        if not self.generalized:
            return [Part(self._favoured(layer, layer.x, positive), self._favoured_bias(layer, positive))]
        z = layer.sum(layer.term(layer.x), layer.bias)
        assert z is not None
        return [
            Part(self._by_sign(layer, positive, negative), self._favoured_bias(layer, positive), where=above_zero(z)),
            Part(self._by_sign(layer, negative, positive), self._favoured_bias(layer, negative), where=below_zero(z)),
            Part([], where=zero(z)),
        ]

    def _by_sign(self, layer: Layer, of_positive: Change, of_negative: Change) -> Terms:
        """The terms where positive inputs favour one sign of the weights, negative ones the other."""
        if layer.nonnegative:
            return self._favoured(layer, layer.x, of_positive)
        up, down = positive(layer.x), negative(layer.x)
        return self._favoured(layer, up, of_positive) + self._favoured(layer, down, of_negative)

    def _favoured(self, layer: Layer, x: Tensor, sign: Change) -> Terms:
        if layer.weight is None:  # fixed weights: their sum with a part of them is no operation of its own
            return layer.term(x) + layer.term(self.gamma * x, sign)
        return layer.term(x, lambda weight: weight + self.gamma * sign(weight))

    def _favoured_bias(self, layer: Layer, sign: Change) -> Tensor | None:
        return None if layer.bias is None else layer.bias + self.gamma * sign(layer.bias)


def _part(bias: Tensor | None, sign: Change) -> Tensor | None:
    return None if bias is None else sign(bias)
