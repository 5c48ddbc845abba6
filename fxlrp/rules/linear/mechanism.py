"""The mechanism of all linear rules.

Change the input and the weights, take the denominator ``z_j = Σ_i x_i w_ji``, divide the
incoming relevance by it, go back through the transpose and multiply with the (changed) input:

    R_i = x_i Σ_j w_ji R_j / z_j

A rule is the list of :class:`Part` that make it up, nearly always one: the (input, weights)
terms that enter ``z``, and what to do about the bias and a denominator that vanishes. A rule whose
shares depend on the sign of the output makes a :class:`Quotient` of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.rule import BIAS, STABILIZER, Ask, Rule, Shares, added, given
from fxlrp.steps.batch_axis import BatchAxis, rescale
from fxlrp.steps.linear_operation import LinearOperation, Weight
from fxlrp.steps.primitives import divide, magnitude, negative, positive, stabilize, where_vanished, without_padding
from fxlrp.vocabulary.operation import Kind

VANISHING = ("rescale", "spread", "absorb")
BIAS_POLICIES = ("ignore", "absorb", "share")

Change = Callable[[Tensor], Tensor]
"""What a rule makes of weights, element by element, such as ``positive``."""


class Term(NamedTuple):
    """An input, and the operation and weights that it goes through."""

    x: Tensor
    operation: LinearOperation
    weight: Weight


Terms = list[Term]


@dataclass(frozen=True)
class Layer:
    """A linear operation and what it is applied to.

    Attributes:
        operation: the operation, without its weights.
        x: the operand, (batch, ...).
        weight: its weights, ``None`` where the operation has none.
        bias: in a shape that adds to the output, or ``None``.
        nonnegative, weight_nonnegative: whether ``x`` or ``weight`` is known to have no negative element.
        support: like ``x``, ones where an element carries signal; ``None``: everywhere.
        output: what the operation gives at ``x`` with its bias, where that is at hand.
    """

    operation: LinearOperation
    x: Tensor
    weight: Weight
    bias: Tensor | None = None
    nonnegative: bool = False
    weight_nonnegative: bool = False
    support: Tensor | None = None
    output: Tensor | None = None

    def term(self, x: Tensor, change: Change | None = None) -> Terms:
        """``x`` through changed weights; no term where nothing is left of them."""
        if change is None or (change is positive and self.weight_nonnegative):
            return [Term(x, self.operation, self.weight)]
        if change is negative and self.weight_nonnegative:
            return []
        changed = self.operation.changed(self.weight, change)
        return [] if changed is None else [Term(x, *changed)]

    def sum(self, terms: Terms, bias: Tensor | None = None) -> Tensor | None:
        """What terms and bias add up to, (batch, ...) like the output; ``None`` where there are none."""
        if self.output is not None and bias is self.bias and [self._is_own(term) for term in terms] == [True]:
            return self.output
        summands = [term.operation.apply(term.x, term.weight) for term in terms]
        if bias is not None:
            summands.append(bias)
        return added(summands) if summands else None

    def _is_own(self, term: Term) -> bool:
        """Whether ``term`` is the layer as it stands."""
        return term.x is self.x and term.operation is self.operation and term.weight is self.weight

    def magnitudes(self, factor: float = 1.0) -> Terms:
        """The magnitudes of the contributions, ``factor |x||w|``."""
        x = self.x if self.nonnegative else magnitude(self.x)
        if factor == 1:
            return self.term(x, None if self.weight_nonnegative else magnitude)
        if self.weight is None:  # fixed weights are not multiplied by a number
            return self.term(factor * x, None if self.weight_nonnegative else magnitude)
        return self.term(x, lambda weight: factor * magnitude(weight))

    def positive(self) -> Terms:
        """The positive contributions, ``x⁺w⁺ + x⁻w⁻``."""
        if self.nonnegative:
            return self.term(self.x, positive)
        return self.term(positive(self.x), positive) + self.term(negative(self.x), negative)

    def negative(self) -> Terms:
        """The negative contributions, ``x⁺w⁻ + x⁻w⁺``."""
        if self.nonnegative:
            return self.term(self.x, negative)
        return self.term(positive(self.x), negative) + self.term(negative(self.x), positive)

    @property
    def carriers(self) -> Tensor:
        """Ones in the place of ``x``, zeros where it carries no signal."""
        return torch.ones_like(self.x) if self.support is None else self.support


class Part(NamedTuple):
    """One quotient of a rule: ``factor Σ_terms x_i Σ_j w_ji R_j / z_j``.

    Attributes:
        terms: what adds up to the denominator.
        bias: what the bias adds to it, or ``None``.
        factor: of the relevance, how much is shared out here.
    """

    terms: Terms
    bias: Tensor | None = None
    factor: float = 1.0


class LinearRule(Rule):
    """Base of the rules for linear operations.

    Args:
        stabilizer: added to the denominator in the direction of its sign, sign(0) = +1.
            What it keeps is absorbed.
        bias: ``"ignore"``: the bias is no part of the denominator and receives nothing.
            ``"absorb"``: it is part of it, and its share is absorbed. ``"share"``: it is part of
            it, and its share goes evenly to the inputs that the output looks at.
        vanishing: what happens to relevance whose denominator vanishes.
            ``"rescale"``: it is handed to the node's inputs in proportion to what the rest
            of the item's relevance gave them (one factor per item); where nothing is left to
            be in proportion to, evenly to the inputs that carry signal.
            ``"spread"``: evenly to the inputs that carry signal in the output's own window.
            ``"absorb"``: it is absorbed.
            With a stabilizer no denominator vanishes, and this has no effect.

    Raises:
        RuleError: an argument is not one of the above.
    """

    kinds = (Kind.LINEAR,)
    needs = ("nonnegative", "support", "filled", "batch_axis", "received_batch_axis", "output", "signed")

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

    @abstractmethod
    def parts(self, layer: Layer) -> Sequence[Part]:
        """The quotients that the rule is made of; ``layer.bias`` is ``None`` where it is to be ignored."""

    def quotients(self, layer: Layer, relevance: Tensor) -> Sequence[Quotient]:
        """The parts with their denominators taken."""
        return [Quotient(layer, part, relevance, self) for part in self.parts(layer)]

    def __call__(
        self, operation: LinearOperation, x: Tensor, weight: Weight, bias: Tensor | None,
        relevance: Tensor, *, nonnegative: bool = False, support: Tensor | None = None, filled: bool = False,
        signed: bool = True, weight_nonnegative: bool = False, batch_axis: BatchAxis | None = None,
        received_batch_axis: BatchAxis | None = None, output: Tensor | None = None,
    ) -> Shares:
        """Share ``relevance`` of the output out over ``x``.

        Args:
            operation: the linear operation, without its weights.
            x: the operand, (batch, ...).
            weight: its weights, ``None`` where the operation has none.
            bias: its bias, in a shape that adds to the output, or ``None``.
            relevance: like the output of the operation.
            nonnegative: whether ``x`` is known to have no negative element.
            support: like ``x``, ones where an element carries signal; ``None``: everywhere.
            filled: whether ``x`` may hold other values than zero where it carries none; they
                take no share.
            signed: whether ``relevance`` may be negative anywhere.
            weight_nonnegative: whether ``weight`` is known to have no negative element.
            batch_axis: where the batch is in ``x``; ``None``: in front.
            received_batch_axis: where it is in ``relevance``.
            output: what the operation gives at ``x`` with its bias, where that is at hand.
        """
        if filled and support is not None:
            x, output = without_padding(x, support), None
        if self.bias == "ignore" and bias is not None:
            bias = output = None
        layer = Layer(operation, x, weight, bias, nonnegative, weight_nonnegative, support, output)
        quotients = self.quotients(layer, relevance)
        given = [share for quotient in quotients for share in quotient.shares(x)]
        share = added(given) if given else torch.zeros_like(x)
        biased = [quotient for quotient in quotients if quotient.to_bias is not None]
        to_bias = added([quotient.kept_by_bias() for quotient in biased]) if biased else None
        if to_bias is not None and self.bias == "share":
            share = share + _spread(layer, to_bias)
        if self.stabilizer or self.vanishing == "absorb":
            shares = Shares([share], {STABILIZER: lambda: [quotient.kept() for quotient in quotients]})
        else:
            vanished = added([quotient.vanished() for quotient in quotients])
            if self.vanishing == "spread":
                share = share + _spread(layer, vanished)
            elsewhere = {} if batch_axis is None and received_batch_axis is None else {
                "batch_axis": batch_axis, "received_batch_axis": received_batch_axis,
            }  # fmt: skip
            received = relevance if to_bias is None or self.bias == "share" else relevance - to_bias
            signed = signed or not self.keeps_sign
            share = rescale(share, received, support, signed, **elsewhere)
            shares = Shares([share], rescaled=lambda: vanished)
        if to_bias is not None and self.bias == "absorb":
            shares.absorbed = {BIAS: lambda: to_bias, **shares.absorbed}
        elif to_bias is not None and shares.absorbed:
            shares.absorbed = {BIAS: lambda: _unreached(layer, to_bias), **shares.absorbed}
        return shares

    def at(self, relevance: Tensor, ask: Ask) -> Shares:
        operation, x, weight, bias = (ask(name) for name in ("operation", "x", "weight", "bias"))
        return self(operation, x, weight, bias, relevance, **given(self.needs, ask))


class Quotient:
    """A part of a rule with its denominator taken.

    Attributes:
        s: relevance over denominator, ``None`` where nothing adds up to one.
        to_bias: what the bias adds to the denominator.
    """

    def __init__(self, layer: Layer, part: Part, relevance: Tensor, rule: LinearRule) -> None:
        self.part = part
        self.relevance = relevance if part.factor == 1 else part.factor * relevance
        self.to_bias = part.bias
        self.epsilon = rule.stabilizer
        self.s: Tensor | None = None
        z = layer.sum(part.terms, part.bias)
        if z is None:
            return
        self.z = z
        self.s = divide(self.relevance, z, not rule.keeps_sign, self.epsilon)

    def shares(self, x: Tensor) -> list[Tensor]:
        """The relevance that each term gives to the operand ``x``."""
        if self.s is None:
            return []
        return [t.x * t.operation.transpose(self.s, t.weight, x) for t in self.part.terms]

    def kept_by_bias(self) -> Tensor:
        """The bias' share."""
        assert self.s is not None
        assert self.to_bias is not None
        return self.s * self.to_bias

    def kept(self) -> Tensor:
        """What the stabilizer keeps, or without one what vanishes."""
        return self.kept_by_stabilizer() if self.epsilon else self.vanished()

    def kept_by_stabilizer(self) -> Tensor:
        """What the stabilizer keeps."""
        return self.relevance if self.s is None else self.s * (stabilize(self.z, self.epsilon) - self.z)

    def vanished(self) -> Tensor:
        """The relevance whose denominator vanishes."""
        return self.relevance if self.s is None else where_vanished(self.relevance, self.z)


def _spread(layer: Layer, relevance: Tensor) -> Tensor:
    """Relevance of outputs, evenly over the signal in each one's own window."""
    counts, ((_, operation, weight),) = _counts(layer)
    return layer.carriers * operation.transpose(divide(relevance, counts), weight, layer.x)


def _unreached(layer: Layer, relevance: Tensor) -> Tensor:
    """The relevance of outputs that look at no signal at all."""
    return where_vanished(relevance, _counts(layer)[0])


def _counts(layer: Layer) -> tuple[Tensor, Terms]:
    """How many inputs that carry signal each output looks at."""
    terms = layer.term(layer.carriers, torch.ones_like)
    return terms[0].operation.apply(terms[0].x, terms[0].weight), terms
