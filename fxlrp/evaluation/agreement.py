"""Rank correlation of maps, and the check by randomised weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxlrp.common.errors import InputError
from fxlrp.evaluation.ties import first_equal, last_equal


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of maps, pixel by pixel; pixels that tie share the mean of their ranks.

    Args:
        first: (batch, height, width).
        second: of the same shape.

    Returns:
        (batch,), float64; NaN where a map is constant.

    Raises:
        InputError: the shapes differ.
    """
    if first.shape != second.shape or first.dim() < 2:
        raise InputError(f"maps of shape {tuple(first.shape)} and {tuple(second.shape)} cannot be compared")
    return (standard_ranks(first) * standard_ranks(second)).sum(dim=1)


def rank_correlations(maps: Tensor) -> Tensor:
    """Spearman's rank correlation of each map with each other: (maps, height, width) to (maps, maps), float64."""
    ranked = standard_ranks(maps)
    return ranked @ ranked.T


def standard_ranks(maps: Tensor) -> Tensor:
    """The ranks of pixels, of mean zero and length one: (batch, ...) to (batch, pixels); NaN for a constant map."""
    centred = ranks(maps.flatten(1))
    centred -= centred.mean(dim=1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True)


def ranks(values: Tensor) -> Tensor:
    """The rank of each element of (batch, n), from 0; what ties shares the mean of its ranks. float64."""
    ordered, order = values.sort(dim=1, stable=True)
    mean = (first_equal(ordered) + last_equal(ordered)).double() / 2
    return torch.empty_like(mean).scatter_(1, order, mean)


@dataclass(frozen=True)
class Randomized:
    """How alike maps are to those of the trained model once its weights are random down to a layer.

    Attributes:
        layer: the module that was the last to be randomised.
        correlation: (batch,), Spearman's, with the maps of the trained model.
        absolute: (batch,), the same of absolute values, which a mere change of sign leaves alone.
    """

    layer: str
    correlation: Tensor
    absolute: Tensor


def randomization_check(
    model: nn.Module, explain: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]], inputs: Tensor,
    targets: Tensor, *, stages: int | None = None, seed: int = 0,
) -> Iterator[Randomized]:  # fmt: skip
    """The sanity check by cascading randomisation (Adebayo et al., NeurIPS 2018).

    Weights are made random layer by layer, from the output down; a map that depends on what the model
    has learned must change. A method whose maps stay as they are shows the image, not the model.

    Args:
        model: the trained model, in eval mode. It is not changed.
        explain: from a model to a function from inputs and classes to maps (batch, height, width).
        inputs: what the model takes, (batch, ...).
        targets: the classes to explain, (batch,).
        stages: after how many layers, evenly spaced, maps are compared; ``None``: after each that has weights.
        seed: of the random weights.

    Yields:
        One entry per stage, from the output down; at the last one nothing learned is left.
    """
    before = explain(model)(inputs, targets)
    randomised = copy.deepcopy(model)
    layers = [(name, module) for name, module in randomised.named_modules() if _has_weights(module)]
    generator = torch.Generator().manual_seed(seed)
    count = len(layers) if stages is None else min(stages, len(layers))
    compared = {round((i + 1) * len(layers) / count) for i in range(count)}
    for done, (name, module) in enumerate(reversed(layers), start=1):
        _randomize(module, generator)
        if done not in compared:
            continue
        maps = explain(randomised)(inputs, targets)
        yield Randomized(name, rank_correlation(maps, before), rank_correlation(maps.abs(), before.abs()))


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a layer's weights anew: as widely spread as they were, around zero; a bias becomes zero."""
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((drawn * parameter.std().cpu()).to(parameter))
        else:
            parameter.zero_()
