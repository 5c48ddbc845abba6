"""The composites of zennit, under their names: one function each, with their parameters.

As zennit defines them, with its canonizers: batch norm is folded, sums and average pools run the
ε rule (``Norm``), max pools go to the winner, a bias is part of the denominator and absorbs. What
zennit has no rule for (other norms, attention, gates, recurrent layers) is treated in the same spirit. Norms hold
their deviation constant: were relevance handed on unchanged there, signed sums at the joins of a transformer would
grow it by 10²⁰.
Sources: Montavon et al., *Layer-Wise Relevance Propagation: An Overview* (LNCS 11700, 2019);
Kohlbrenner et al. (IJCNN 2020); Anders et al., zennit (arXiv 2106.13200).
"""

from __future__ import annotations

from types import MappingProxyType

import torch.nn.functional as F

from fxlrp.presets.preset import Preset
from fxlrp.rules.gradient import Gradient, ReLUDeconvNet, ReLUGuidedBackprop
from fxlrp.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, Norm, ZBox, ZPlus
from fxlrp.rules.linear.first import Bound
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import ThroughValues
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Rule
from fxlrp.rules.selection import Winner
from fxlrp.rules.split import SignedSplit


def epsilon(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """The ε rule everywhere (Bach et al., PLOS ONE 2015).

    Args:
        epsilon: the stabilizer of layers.
        stabilizer: that of sums and averages.
    """
    return _composite("epsilon", Epsilon(epsilon, bias="absorb"), None, epsilon, stabilizer)


def epsilon_plus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """z⁺ in convolutions, ε in linear layers.

    Args:
        epsilon: the stabilizer of the ε rule.
        stabilizer: that of all others.
    """
    return _composite("epsilon_plus", _plus(stabilizer), None, epsilon, stabilizer)


def epsilon_plus_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """As :func:`epsilon_plus`, with the flat rule in the first layer."""
    return _composite("epsilon_plus_flat", _plus(stabilizer), _flat(stabilizer), epsilon, stabilizer)


def epsilon_alpha2_beta1(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """α2β1 in convolutions, ε in linear layers; parameters as in :func:`epsilon_plus`."""
    return _composite("epsilon_alpha2_beta1", _alpha_beta(stabilizer), None, epsilon, stabilizer)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """As :func:`epsilon_alpha2_beta1`, with the flat rule in the first layer."""
    first = _flat(stabilizer)
    return _composite("epsilon_alpha2_beta1_flat", _alpha_beta(stabilizer), first, epsilon, stabilizer)


def epsilon_gamma_box(
    low: Bound | None = None, high: Bound | None = None, epsilon: float = 1e-6, gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Preset:
    """z^B in the first convolution, γ in the others, ε in linear layers.

    Args:
        low: the least value of the input, as :class:`fxlrp.rules.ZBox` takes it; by default that of
            pixels normalised as for ImageNet.
        high: the largest.
        epsilon: the stabilizer of the ε rule.
        gamma: of the γ rule.
        stabilizer: that of all others.

    Raises:
        RuleError: one bound without the other, or a bound that is none.
    """
    box = ZBox(low, high, stabilizer=stabilizer)
    convolution = Gamma(gamma, stabilizer=stabilizer, bias="absorb")
    return _composite("epsilon_gamma_box", convolution, None, epsilon, stabilizer, first_convolution=box)


def excitation_backprop(stabilizer: float = 1e-6) -> Preset:
    """Excitation backpropagation: z⁺ in every layer (Zhang et al., IJCV 2018).

    Args:
        stabilizer: of all rules.
    """
    plus = _plus(stabilizer)
    return Preset(
        "excitation_backprop", linear=plus, pooling=Norm(stabilizer), selection=Winner(), split=SignedSplit(stabilizer),
        batch_norm=Fold(), product=ThroughValues(plus), recurrent=Recurrent(plus, SignedSplit(stabilizer)),
    )  # fmt: skip


def guided_backprop() -> Preset:
    """The gradient, at each ReLU what is positive of it (Springenberg et al., ICLR 2015); does not conserve."""
    return _gradients("guided_backprop", ReLUGuidedBackprop())


def deconvnet() -> Preset:
    """The gradient, each ReLU applied to it instead (Zeiler and Fergus, ECCV 2014); does not conserve."""
    return _gradients("deconvnet", ReLUDeconvNet())


def _plus(stabilizer: float) -> LinearRule:
    return ZPlus(stabilizer=stabilizer, bias="absorb")


def _alpha_beta(stabilizer: float) -> LinearRule:
    return AlphaBeta(2, 1, stabilizer=stabilizer, bias="absorb")


def _flat(stabilizer: float) -> LinearRule:
    return Flat(stabilizer=stabilizer)


def _composite(
    name: str, convolution: Rule, first: Rule | None, epsilon: float, stabilizer: float, *,
    first_convolution: Rule | None = None,
) -> Preset:
    linear, sums = Epsilon(epsilon, bias="absorb"), SignedSplit(stabilizer)
    return Preset(
        name, linear=linear, convolution=convolution, pooling=Norm(stabilizer), first=first,
        first_convolution=first_convolution, selection=Winner(), split=sums, norm=NormEpsilon(stabilizer),
        batch_norm=Fold(), product=ThroughValues(Epsilon(epsilon)), recurrent=Recurrent(linear, sums),
    )  # fmt: skip


def _gradients(name: str, relu: Rule) -> Preset:
    back = Gradient()
    return Preset(
        name, linear=back, selection=back, split=back, gate=back, product=back, recurrent=back, norm=back,
        batch_norm=back, softmax=back, pointwise=back, rules=MappingProxyType({F.relu: relu}),
    )  # fmt: skip
