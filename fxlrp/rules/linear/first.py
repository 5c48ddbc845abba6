"""Linear rules for the first layer, whose input is pixels: by the weights alone, or within bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.common.errors import RuleError
from fxlrp.rules.linear.contributions import ZPlus
from fxlrp.rules.linear.mechanism import Layer, LinearRule, Part
from fxlrp.steps.primitives import along_channels, negative, positive, squared

Bound = float | Sequence[float] | Tensor
"""One number, one per channel, or a tensor that broadcasts to the input and is constant in each channel."""


class WPlus(ZPlus):
    """The z⁺ rule at an input of ones: ``z_ij = w⁺_ji``.

    For the first layer: pixel values do not enter the explanation (released code of
    Otsuki et al., ECCV 2024). Padding stays zero. Arguments as in :class:`LinearRule`.
    """

    def parts(self, layer: Layer) -> Sequence[Part]:
        return [Part(layer.term(layer.carriers, positive), self.positive_bias(layer))]


class WSquare(LinearRule):
    """w² rule: ``z_ij = w_ji²``, whatever the input (Montavon et al., Pattern Recognition 2017, Eq. 12).

    Arguments as in :class:`LinearRule`; a bias that is not ignored counts by its square.
    """

    keeps_sign = True

    def __init__(self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "rescale") -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)

    def parts(self, layer: Layer) -> Sequence[Part]:
        bias = None if layer.bias is None else squared(layer.bias)
        return [Part(layer.term(layer.carriers, squared), bias)]


class Flat(LinearRule):
    """Flat rule: evenly over the window, ``z_ij = 1`` (Lapuschkin et al., Nature Communications 2019).

    Arguments as in :class:`LinearRule`; a bias that is not ignored counts as one more input.
    """

    keeps_sign = True

    def __init__(self, *, stabilizer: float = 0.0, bias: str = "ignore", vanishing: str = "rescale") -> None:
        super().__init__(stabilizer=stabilizer, bias=bias, vanishing=vanishing)

    def parts(self, layer: Layer) -> Sequence[Part]:
        bias = None if layer.bias is None else torch.ones_like(layer.bias)
        return [Part(layer.term(layer.carriers, torch.ones_like), bias)]


class ZBox(LinearRule):
    """z^B rule, for inputs between two bounds: ``z_ij = x_i w_ji − l_i w⁺_ji − h_i w⁻_ji``.

    Montavon et al. (Pattern Recognition 2017), Eq. 15. No contribution is negative for an input
    inside the box; a bias contributes nothing. Padding has no bounds, and receives nothing.

    Args:
        low: the least value that the input may have: a number, one per channel, or a tensor that broadcasts to the
            input and is constant in each channel. For normalised pixels see :meth:`from_normalization`, whose values
            for ImageNet are the default.
        high: the largest value, the same way.
        stabilizer: as in :class:`LinearRule`.
        vanishing: as in :class:`LinearRule`.
    """

    def __init__(
        self, low: Bound | None = None, high: Bound | None = None, *, stabilizer: float = 0.0,
        vanishing: str = "rescale",
    ) -> None:
        super().__init__(stabilizer=stabilizer, vanishing=vanishing)
        if (low is None) != (high is None):
            raise RuleError("z^B needs both bounds, low and high; or neither, for pixels normalised as for ImageNet")
        if low is None or high is None:
            low, high = _normalised(0.0, IMAGENET_MEAN, IMAGENET_STD), _normalised(1.0, IMAGENET_MEAN, IMAGENET_STD)
        self.low, self.high = _plain(low, "low"), _plain(high, "high")
        if not bool((torch.as_tensor(self.low) <= torch.as_tensor(self.high)).all()):
            raise RuleError(f"the lower bound of z^B is above the upper one: low={low!r}, high={high!r}")

    @classmethod
    def from_normalization(
        cls, mean: Sequence[float], std: Sequence[float], *, pixels: tuple[float, float] = (0.0, 1.0),
        stabilizer: float = 0.0, vanishing: str = "rescale",
    ) -> ZBox:
        """The rule for pixels between two values that are then normalised, channel by channel.

        Args:
            mean: that of the normalisation ``(pixel − mean) / std``, one per channel.
            std: its divisor, one per channel.
            pixels: the least and the largest value of a pixel before it.
            stabilizer: as in :class:`LinearRule`.
            vanishing: as in :class:`LinearRule`.
        """
        low, high = (_normalised(pixel, mean, std) for pixel in pixels)
        return cls(low, high, stabilizer=stabilizer, vanishing=vanishing)

    def check_channels(self, channels: int) -> None:
        for bound in (self.low, self.high):
            if isinstance(bound, list) and len(bound) != channels:
                raise RuleError(
                    f"z^B has bounds for {len(bound)} channels, and the layer takes {channels}: give low= and high= as "
                    "one number, or one per channel"
                )

    def parts(self, layer: Layer) -> Sequence[Part]:
        axis = layer.operation.channel_axis
        above = layer.x - along_channels(self.low, layer.x, axis)
        below = layer.x - along_channels(self.high, layer.x, axis)
        if layer.support is not None:
            above, below = above * layer.support, below * layer.support
        return [Part(layer.term(above, positive) + layer.term(below, negative))]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _normalised(pixel: float, mean: Sequence[float], std: Sequence[float]) -> list[float]:
    if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
        raise RuleError(f"a normalisation has one mean and one positive std per channel, not {mean!r} and {std!r}")
    return [(pixel - m) / s for m, s in zip(mean, std, strict=True)]


def _plain(bound: Bound, name: str) -> float | list[float]:
    """A bound as one number or one per channel, which a graph can hold and two rules can be compared by."""
    try:
        values = torch.as_tensor(bound, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RuleError(f"the bound {name}={bound!r} of z^B is neither a number, nor numbers, nor a tensor") from error
    if values.dim() > 1:
        axis = 1 if values.dim() > 3 or values.shape[0] == 1 else 0
        rows = values.movedim(axis, 0).flatten(1)
        if not bool((rows == rows[:, :1]).all()):
            raise RuleError(f"the bound {name} of z^B varies within a channel; give one number, or one per channel")
        values = rows[:, 0]
    plain: float | list[float] = values.tolist()
    return plain
