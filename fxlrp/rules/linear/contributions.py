"""Linear rules that share relevance by what each input contributes, ``x_i w_ji``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.linear.mechanism import Change, Layer, LinearRule, Part, Quotient, Terms
from fxlrp.steps.primitives import divide, favoured_denominator, magnitude, negative, positive, with_sign, zero


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
        return [Part(layer.magnitudes(), None if layer.bias is None else magnitude(layer.bias))]


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
        return [Part(self._favoured(layer), self._favoured_bias(layer))]

    def quotients(self, layer: Layer, relevance: Tensor) -> Sequence[Quotient]:
        if not self.generalized:
            return super().quotients(layer, relevance)
        of_one_sign = layer.nonnegative and layer.weight_nonnegative and layer.bias is None
        if of_one_sign and not self.stabilizer:  # then 1 + γ cancels
            return [Quotient(layer, Part(layer.term(layer.x)), relevance, self)]
        return [_Favouring(layer, relevance, self)]

    def _favoured(self, layer: Layer) -> Terms:
        if layer.weight is None:  # fixed weights: their sum with a part of them is no operation of its own
            return layer.term(layer.x) + layer.term(self.gamma * layer.x, positive)
        return layer.term(layer.x, lambda weight: weight + self.gamma * positive(weight))

    def _favoured_bias(self, layer: Layer) -> Tensor | None:
        return None if layer.bias is None else layer.bias + self.gamma * positive(layer.bias)


class _Favouring(Quotient):
    """The quotient of the generalised γ rule, from the contributions and their magnitudes.

    With ``c_ij = x_i w_ji``, its positive part is ``(|c| + c) / 2`` and its negative part ``(c − |c|) / 2``. So what
    is favoured where the output has the sign ``σ_j`` is ``c + γ (c + σ |c|) / 2``, and

        d_j = (1 + γ/2) |z_j| + γ/2 Σ_i |c_ij|
        R_i = (1 + γ/2) x_i Σ_j w_ji σ_j s_j + γ/2 |x_i| Σ_j |w_ji| s_j        with s = R / d

    That is one product beside ``z``, and two back, whatever the signs of ``x``, and nothing in ``d`` cancels.

    Attributes:
        s: as above, zero where the output is exactly zero.
        signed: (1 + γ/2) σ s.
    """

    def __init__(self, layer: Layer, relevance: Tensor, rule: Gamma) -> None:
        half = rule.gamma / 2
        self.contributions, self.magnitudes = layer.term(layer.x), layer.magnitudes(half)
        self.to_bias = layer.bias
        self.to_bias_magnitude = None if layer.bias is None else half * magnitude(layer.bias)
        z = layer.sum(self.contributions, layer.bias)
        total = layer.sum(self.magnitudes, self.to_bias_magnitude)
        assert z is not None
        assert total is not None
        self.output, self.relevance, self.epsilon = z, relevance, rule.stabilizer
        # Where the output is zero the denominator vanishes; with a stabilizer it must not come back.
        self.z = favoured_denominator(z, total, 1 + half, math.inf if self.epsilon else 0.0)
        self.s = divide(relevance, self.z, False, self.epsilon)
        self.signed = with_sign(self.s, z, 1 + half)

    def shares(self, x: Tensor) -> list[Tensor]:
        assert self.s is not None
        both = (self.signed, self.contributions), (self.s, self.magnitudes)
        return [t.x * t.operation.transpose(s, t.weight, x) for s, terms in both for t in terms]

    def kept_by_bias(self) -> Tensor:
        assert self.s is not None
        assert self.to_bias is not None
        assert self.to_bias_magnitude is not None
        return self.to_bias * self.signed + self.to_bias_magnitude * self.s

    def kept_by_stabilizer(self) -> Tensor:
        assert self.s is not None
        return self.epsilon * self.s + self.relevance * zero(self.output)


def _part(bias: Tensor | None, change: Change) -> Tensor | None:
    return None if bias is None else change(bias)
