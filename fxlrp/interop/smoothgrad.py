"""Relevance averaged over noisy copies of an input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.errors import InputError
from fxlrp.interop.captum import Explains, further_arguments
from fxlrp.results.explanation import Explanation


def smooth(
    explainer: Explains, inputs: Any, target: Any = None, *,
    samples: int = 50, noise: float = 0.15, batch_size: int = 64,
    additional_forward_args: Any = None, generator: torch.Generator | None = None,
) -> Explanation:  # fmt: skip
    """The mean relevance of noisy copies of an input (SmoothGrad, Smilkov et al., 2017, with relevance as its map).

    A rule that absorbs nothing absorbs nothing here either: ``start`` is the mean of what entered.

    Args:
        explainer: the explainer.
        inputs: a tensor (batch, ...) or a tuple of them, the model's first arguments, in floating point.
        target: the class to explain, as for a call of the explainer. ``None``: the one predicted for the
            input without noise, whatever the model says of noisy copies.
        samples: how many noisy copies of each item.
        noise: the standard deviation, as a share of the item's own range, largest less smallest value of
            an input (σ / (x_max − x_min) there; 0.1 to 0.2 is advised).
        batch_size: how many noisy copies are explained at once; never less than the batch.
        additional_forward_args: the model's further arguments, one value or a tuple of them, which get no
            noise. A tensor, (batch, ...), is repeated.
        generator: the source of the noise, on the device of the inputs, for the same result again; the
            result does not depend on ``batch_size``.

    Returns:
        The explanation: means as relevance, at checkpoints and as start; output and target are those of
        the input without noise.

    Raises:
        InputError: an input holds integers, or an option is no number that it can be.
        InputError, TargetError, CaptureError: as for a call of the explainer.
    """
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    _check(several, samples, noise, batch_size)
    further = further_arguments(additional_forward_args)
    clean = explainer.explain((*several, *further), target=target)
    if not clean.items.in_front:
        raise InputError(
            f"noisy copies are made along the first axis, and the batch is elsewhere (batch={clean.items.told!r}): "
            "explain noisy inputs one by one"
        )
    target = clean.target if target is None else target

    scales = [noise * _range(value) for value in several]
    at_once = max(1, batch_size // len(several[0]))
    sums: Any = None
    for first in range(0, samples, at_once):
        copies = min(at_once, samples - first)
        # Drawn sample by sample, so that how many are explained at once changes no number.
        drawn = [[_noise(value, generator) for value in several] for _ in range(copies)]
        noisy = [
            torch.cat([value + scale * sample[place] for sample in drawn])
            for place, (value, scale) in enumerate(zip(several, scales, strict=True))
        ]
        repeated = [_repeated(value, copies) for value in further]
        found = explainer.explain((*noisy, *repeated), target=_repeated(target, copies))
        part = pytree.tree_map(_sum_of_copies(copies), (found.relevance, found.start, found.checkpoints))
        sums = part if sums is None else pytree.tree_map(torch.add, sums, part)
    relevance, start, checkpoints = pytree.tree_map(lambda total: total / samples, sums)
    return Explanation(relevance, clean.output, clean.target, start, checkpoints, clean.inputs)


def _check(inputs: tuple[Any, ...], samples: int, noise: float, batch_size: int) -> None:
    for value in inputs:
        if not isinstance(value, Tensor):
            raise InputError(
                f"inputs= takes a tensor or a tuple of tensors, not {type(value).__name__}; "
                "what else the model takes goes into additional_forward_args="
            )
        if not value.is_floating_point():
            raise InputError(
                f"noise cannot be added to integers, as {value.dtype} holds (token numbers, a mask): give them in "
                "additional_forward_args=, or explain the rest of the model from their embeddings on"
            )
    for name, number in (("samples", samples), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {number!r}")
    if not (isinstance(noise, int | float) and math.isfinite(noise) and noise >= 0):
        raise InputError(f"noise must be a number of at least 0, not {noise!r}")


def _range(value: Tensor) -> Tensor:
    """Largest less smallest value of each item, in a shape that broadcasts to ``value``."""
    rows = value.detach().flatten(1)
    return (rows.amax(dim=1) - rows.amin(dim=1)).reshape(-1, *[1] * (value.dim() - 1))


def _noise(value: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)


def _repeated(value: Any, copies: int) -> Any:
    """A tensor (batch, ...), one copy of the batch after the other; all else as it is."""
    return torch.cat([value] * copies) if isinstance(value, Tensor) and value.dim() else value


def _sum_of_copies(copies: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value.reshape(copies, -1, *value.shape[1:]).sum(dim=0)
