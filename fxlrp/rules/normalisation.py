"""Rules for normalisations that do more than pass relevance on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.rule import BIAS, Rule, Shares
from fxlrp.steps.primitives import divide
from fxlrp.vocabulary.operation import Kind


class NormEpsilon(Rule):
    """The ε rule through a norm whose deviation is held constant (AttnLRP, Prop. 3.4).

    The norm is then a linear map, minus its mean and times weight over deviation, plus a bias.

    Args:
        epsilon: the stabiliser.
    """

    kinds = (Kind.NORMALISATION,)
    needs = ("x", "output", "transpose")

    def __init__(self, epsilon: float = 1e-6) -> None:
        if not epsilon > 0:
            raise RuleError(f"the ε rule of a norm needs a positive epsilon, not {epsilon!r}")
        self.epsilon = epsilon

    def __call__(self, relevance: Tensor, x: Tensor, output: Tensor, transpose: Callable[[Tensor], Tensor]) -> Shares:
        """Share ``relevance`` of the norm's ``output`` out over ``x``; ``transpose`` is the transposed map."""
        s = divide(relevance, output, True, self.epsilon)
        share = x * transpose(s)
        return Shares([share], {BIAS: lambda: relevance - share})


class Fold(Rule):
    """Batch norm in eval mode as a part of the linear operation next to it; relevance passes it unchanged.

    The operation's rule then sees weights and bias with the norm's scale and shift in them: those of
    the operation that the norm follows, or else, where the norm comes first, of the one that reads it
    (Hui & Binder, IWANN 2019; Guillemot et al., arXiv:2002.11018).
    Where there is neither, the norm passes relevance on all the same. The model's tensors stay as they are.
    """

    operations = ("batch_norm",)
    keeps_sign = True

    def __call__(self, relevance: Tensor) -> Shares:
        """Pass ``relevance`` on."""
        return Shares([relevance])
