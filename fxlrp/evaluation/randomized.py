"""Every method's maps of a model whose weights are made random layer by layer, beside those of the trained one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.evaluation.agreement import randomization_check
from fxlrp.evaluation.evaluated_image import EvaluatedImage
from fxlrp.evaluation.measure import Prepared, one_line
from fxlrp.evaluation.methods import MethodSpec, prepare

_STAGES = 8
"""Layers, evenly spaced, after which maps are compared."""


class Share(NamedTuple):
    """What one process measured.

    Attributes:
        layers: the last layer that was made random, by stage.
        methods: by method and stage, the rank correlations of its images; NaN where a map is constant.
    """

    layers: list[str]
    methods: dict[str, list[list[float]]]


def randomized(model: nn.Module, images: Sequence[EvaluatedImage], methods: Sequence[Prepared]) -> Share:
    """Maps of ``images`` by methods that can explain the model, compared by rank with those of the trained model.

    Warns:
        UserWarning: a method failed on random weights; it has no entry.
    """
    layers: list[str] = []
    correlations: dict[str, list[list[float]]] = {}
    if not images:
        return Share(layers, correlations)
    inputs = torch.cat([image.input for image in images])
    with torch.no_grad():
        targets = torch.cat([model(image.input).argmax(1) for image in images])
    for method in methods:
        if method.explain is None:
            continue
        spec = method.entry.spec
        try:
            stages = list(randomization_check(model, _one_by_one(spec, inputs[:1]), inputs, targets, stages=_STAGES))
        except Exception as error:  # a library may raise anything; the other methods go on
            warnings.warn(f"{spec.name} on randomised weights: {one_line(error)}", stacklevel=2)
            continue
        layers = [stage.layer for stage in stages]
        correlations[spec.name] = [stage.correlation.tolist() for stage in stages]
    return Share(layers, correlations)


def joined(shares: Sequence[Share]) -> dict[str, Any]:
    """What all processes measured, among which images were dealt out: layers, and by method the means over images."""
    shares = [share for share in shares if share.layers]
    if not shares:
        return {"layers": [], "methods": {}}
    everywhere = [name for name in shares[0].methods if all(name in share.methods for share in shares)]
    return {
        "layers": shares[0].layers,
        "methods": {
            name: [_mean(stage) for stage in zip(*(share.methods[name] for share in shares), strict=True)]
            for name in everywhere
        },
    }


def _mean(shares: Sequence[Sequence[float]]) -> float | None:
    """The mean over the images of all processes in their order, whatever the number of processes."""
    values = [value for value in chain(*zip_longest(*shares)) if value is not None and not math.isnan(value)]
    return fmean(values) if values else None


def _one_by_one(spec: MethodSpec, example: Tensor) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
    def explain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        made = prepare(spec, model, example, trial=False)  # it has explained this model with its own weights
        return lambda x, target: torch.cat([made(x[i : i + 1], target[i : i + 1]).heatmaps for i in range(len(x))])

    return explain
