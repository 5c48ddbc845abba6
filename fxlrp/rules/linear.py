"""Rules for linear operations.

All share one mechanism: change the input and the weights, take the denominator
``z_j = Σ_i x_i w_ji``, divide the incoming relevance by it, go back through the
transpose and multiply with the (changed) input:

    R_i = x_i Σ_j w_ji R_j / z_j

A rule is the list of (input, weights) pairs that enter ``z``, and what to do about a
denominator that vanishes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.errors import RuleError
from fxlrp.rules.items import Items, rescale
from fxlrp.rules.operations import LinearOperation
from fxlrp.rules.primitives import (
    divide,
    negative,
    positive,
    stabilize,
    where_vanished,
    without_padding,
)
from fxlrp.rules.rule import BIAS, STABILIZER, Rule, Shares

Terms = list[tuple[Tensor, Tensor | None]]

VANISHING = ("rescale", "spread", "absorb")
BIAS_POLICIES = ("ignore", "absorb")


class LinearRule(Rule):
    """Base of the rules for linear operations.

    Args:
        stabilizer: added to the denominator in the direction of its sign, sign(0) = +1.
            What it keeps is absorbed.
        bias: ``"ignore"``: the bias is no part of the denominator and receives nothing.
            ``"absorb"``: it is part of it, and its share is absorbed.
        vanishing: what happens to relevance whose denominator vanishes.
            ``"rescale"``: it is handed to the node's inputs in proportion to what the rest
            of the item's relevance gave them (one factor an item); where nothing is left to
            be in proportion to, evenly to the inputs that carry signal.
            ``"spread"``: evenly to the inputs that carry signal in the output's own window.
            ``"absorb"``: it is absorbed.
            With a stabilizer no denominator vanishes, and this has no effect.

    Raises:
        RuleError: an argument is not one of the above.
    """

    def __init__(self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "absorb") -> None:
        if vanishing not in VANISHING:
            raise RuleError(f"vanishing={vanishing!r}: choose one of {', '.join(map(repr, VANISHING))}")
        if bias not in BIAS_POLICIES:
            raise RuleError(f"bias={bias!r}: choose one of {', '.join(map(repr, BIAS_POLICIES))}")
        if not stabilizer >= 0:
            raise RuleError(f"a stabilizer must be zero or positive, not {stabilizer!r}")
        self.stabilizer = stabilizer
        self.bias = bias
        self.vanishing = vanishing

    def terms(
        self, x: Tensor, weight: Tensor | None, *, nonnegative: bool, weight_nonnegative: bool, support: Tensor | None
    ) -> Terms:
        """The (input, weights) pairs that add up to the denominator."""
        raise NotImplementedError

    def seen(self, operation: LinearOperation) -> LinearOperation:
        """``operation`` as the rule sees it."""
        return operation

    def __call__(
        self, operation: LinearOperation, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        relevance: Tensor, *, nonnegative: bool = False, support: Tensor | None = None, filled: bool = False,
        signed: bool = True, weight_nonnegative: bool = False, items: Items | None = None,
        received_items: Items | None = None,
    ) -> Shares:
        """Share ``relevance`` of the output out over ``x``.

        Args:
            operation: the linear operation, without its weights.
            x: the operand, (batch, ...).
            weight: its weights, ``None`` where the operation has none.
            bias: its bias, in the shape that the operation takes, or ``None``.
            relevance: like the output of the operation.
            nonnegative: whether ``x`` is known to have no negative element.
            support: like ``x``, ones where an element carries signal; ``None``: everywhere.
            filled: whether ``x`` may hold other values than zero where it carries none; they
                take no share.
            signed: whether ``relevance`` may be negative anywhere.
            weight_nonnegative: whether ``weight`` is known to have no negative element.
            items: where the batch is in ``x``; ``None``: in front.
            received_items: where it is in ``relevance``.
        """
        operation = self.seen(operation)
        if filled and support is not None:
            x = without_padding(x, support)
        terms = self.terms(
            x, weight, nonnegative=nonnegative, weight_nonnegative=weight_nonnegative, support=support
        )
        z = _sum([operation.apply(value, w) for value, w in terms])
        if bias is not None and self.bias == "absorb":
            z = z + operation.broadcast_bias(bias)
        denominator = stabilize(z, self.stabilizer) if self.stabilizer else z
        s = divide(relevance, denominator, not self.keeps_sign)
        signed = signed or not self.keeps_sign
        share = _sum([value * operation.transpose(s, w, x) for value, w in terms])

        shares = Shares([share])
        if bias is not None and self.bias == "absorb":
            shares.absorbed[BIAS] = lambda: s * operation.broadcast_bias(bias)
        if self.stabilizer:
            shares.absorbed[STABILIZER] = lambda: s * (denominator - z)
        elif self.vanishing == "absorb":
            shares.absorbed[STABILIZER] = lambda: where_vanished(relevance, z)
        else:
            vanished = where_vanished(relevance, z)
            if self.vanishing == "spread":
                share = share + _spread(operation, x, weight, vanished, support)
            received = relevance
            if bias is not None and self.bias == "absorb":
                received = relevance - s * operation.broadcast_bias(bias)
            elsewhere = {} if items is None and received_items is None else {
                "items": items, "received_items": received_items,
            }  # fmt: skip
            shares.operands = [rescale(share, received, support, signed, **elsewhere)]
            shares.rescaled = lambda: vanished
        return shares


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _spread(
    operation: LinearOperation, x: Tensor, weight: Tensor | None, vanished: Tensor, support: Tensor | None
) -> Tensor:
    """Relevance of vanished outputs, evenly over the signal in each one's own window."""
    carriers = torch.ones_like(x) if support is None else support
    ones = None if weight is None else torch.ones_like(weight)
    counts = operation.apply(carriers, ones)
    return carriers * operation.transpose(divide(vanished, counts), ones, x)


class ZPlus(LinearRule):
    """z⁺ rule: only positive contributions share the relevance.

    ``z_ij = w⁺_ji x⁺_i + w⁻_ji x⁻_i``; for x ≥ 0 that is Otsuki et al. (ECCV 2024),
    Eqs. 2–3, after Montavon et al. (Pattern Recognition 2017), and α1β0 of Bach et al.
    (PLOS ONE 2015). Arguments as in :class:`LinearRule`.
    """

    def __init__(self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "rescale") -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.bias == "ignore"  # a negative bias could turn a denominator

    def seen(self, operation: LinearOperation) -> LinearOperation:
        return operation.without_negative_weights()

    def terms(
        self, x: Tensor, weight: Tensor | None, *, nonnegative: bool, weight_nonnegative: bool, support: Tensor | None
    ) -> Terms:
        if weight is None or weight_nonnegative:
            return [(x if nonnegative else positive(x), weight)]
        if nonnegative:
            return [(x, positive(weight))]
        return [(positive(x), positive(weight)), (negative(x), negative(weight))]


class WPlus(ZPlus):
    """The z⁺ rule at an input of ones: ``z_ij = w⁺_ji``.

    For the first layer: pixel values do not enter the explanation (released code of
    Otsuki et al., ECCV 2024). Padding stays zero. Arguments as in :class:`LinearRule`.
    """

    def terms(
        self, x: Tensor, weight: Tensor | None, *, nonnegative: bool, weight_nonnegative: bool, support: Tensor | None
    ) -> Terms:
        ones = torch.ones_like(x) if support is None else support
        return [(ones, weight if weight is None or weight_nonnegative else positive(weight))]


class Epsilon(LinearRule):
    """ε rule: ``R_i = x_i Σ_j w_ji R_j / (z_j + ε sign z_j)`` (Bach et al., PLOS ONE 2015, Eq. 58).

    ``Epsilon(0)`` is LRP-0; relevance whose denominator vanishes is then absorbed.
    """

    def __init__(self, epsilon: float = 1e-6, *, bias: str = "ignore") -> None:
        super().__init__(stabilizer=epsilon, bias=bias)

    def __repr__(self) -> str:
        bias = "" if self.bias == "ignore" else f", bias={self.bias!r}"
        return f"Epsilon({self.stabilizer!r}{bias})"

    def terms(
        self, x: Tensor, weight: Tensor | None, *, nonnegative: bool, weight_nonnegative: bool, support: Tensor | None
    ) -> Terms:
        return [(x, weight)]
