"""What a method's maps are like, measured on a few images: where they point, and what they depend on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.evaluation.agreement import rank_correlation, ranks
from fxlrp.evaluation.config import MetricsConfig
from fxlrp.evaluation.evaluated_image import EvaluatedImage
from fxlrp.evaluation.grid_pointing import grids, point
from fxlrp.evaluation.measure import Prepared, one_line
from fxlrp.evaluation.methods import Explain

NOISE = 0.05
"""Standard deviation of the noise that maps should withstand, as a share of the range of the image's values."""

SURE = 0.6
"""The probability with which the model must recognise an image that is to stand in a grid."""

IN_GRIDS = 40
"""Images at most that grids are made of."""

Values = dict[str, list[float | None]]
"""By property, one number per image, cell or grid; ``None`` where there is none, as for a constant map."""


def sparsity(maps: Tensor) -> Tensor:
    """The Gini index of a map's magnitudes: 0 where all pixels have the same, near 1 where a few have all.

    Args:
        maps: (batch, height, width).

    Returns:
        (batch,), float64; NaN where a map is zero.
    """
    values = maps.flatten(1).double().abs()
    count = values.shape[1]
    centred = 2 * ranks(values) - (count - 1)
    return (centred * values).sum(dim=1) / (count * values.sum(dim=1))


def of_image(image: EvaluatedImage, model: nn.Module, explain: Explain, *, patch: int = 1) -> Values:
    """What the map of the predicted class is like.

    Maps are summed over squares of ``patch`` pixels first, as a transformer sees them.

    Returns:
        ``"second class"`` and ``"random class"``: its rank correlation with the map of that class. ``"stability"``:
        with the map of the image with noise (:data:`NOISE`). ``"sparsity"``: :func:`sparsity`. ``"arriving"``: the
        sum of its magnitudes over the relevance that entered, ``None`` for methods that distribute nothing.
    """
    inputs = image.input
    generator = torch.Generator().manual_seed(image.sample.index)
    with torch.no_grad():
        logits = model(inputs)[0]
    first, second = logits.topk(2).indices
    other = int(torch.randint(len(logits) - 1, (), generator=generator))
    other += other >= int(first)
    noise = torch.randn(inputs.shape, generator=generator).to(inputs) * NOISE * (inputs.max() - inputs.min())
    found = explain(inputs, first[None])
    maps = summed(found.heatmaps, patch)
    by_others = {
        "second class": explain(inputs, second[None]),
        "random class": explain(inputs, torch.tensor([other], device=inputs.device)),
        "stability": explain(inputs + noise, first[None]),
    }
    arriving = None if found.start is None else maps.abs().sum() / found.start.abs().sum()
    return {
        **{name: [_number(rank_correlation(maps, summed(each.heatmaps, patch)))] for name, each in by_others.items()},
        "sparsity": [_number(sparsity(maps))],
        "arriving": [None if arriving is None else _number(arriving)],
    }


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def recognised(images: Iterable[EvaluatedImage], model: nn.Module) -> tuple[Tensor, list[int]]:
    """Images that the model is sure of, one after the other: what it takes, and the classes."""
    kept: list[Tensor] = []
    classes: list[int] = []
    for image in images:
        with torch.no_grad():
            probability, predicted = model(image.input)[0].softmax(dim=0).max(dim=0)
        if probability >= SURE and image.sample.label in (None, int(predicted)):
            kept.append(image.input[0])
            classes.append(int(predicted))
        if len(kept) == IN_GRIDS:
            break
    return (torch.stack(kept) if kept else torch.empty(0)), classes


def made_grids(
    images: Iterable[EvaluatedImage], model: nn.Module, metrics: MetricsConfig
) -> list[tuple[Tensor, list[int]]]:
    """The grids of a configuration: (channels, 2 · height, 2 · width), and the classes in reading order.

    Raises:
        EvaluationError: the model is sure of too few classes.
    """
    cells, classes = recognised(images, model)
    if metrics.cell is not None and len(cells):
        cells = F.interpolate(cells, (metrics.cell, metrics.cell), mode="bilinear", antialias=True)
    return grids(cells, classes, metrics.grids)


def of_grid(grid: tuple[Tensor, list[int]], patch: int, explain: Explain) -> Values:
    """The share of positive relevance in the right cell, per cell, and the correlation between the classes' maps.

    Maps are summed over squares of ``patch`` pixels first, as a transformer sees them.
    """
    result = point(lambda inputs, targets: summed(explain(inputs, targets).heatmaps, patch), *grid)
    return {"pointing": [*result.shares], "correlation in a grid": [result.correlation]}


def summed(maps: Tensor, patch: int) -> Tensor:
    """Maps, (batch, height, width), summed over squares of ``patch`` pixels."""
    return maps if patch == 1 else F.avg_pool2d(maps[:, None], patch, divisor_override=1)[:, 0]


def measured(methods: Sequence[Prepared], measures: Sequence[Callable[[Explain], Values]]) -> list[dict[str, Values]]:
    """What one process measures: per measure, by method.

    Warns:
        UserWarning: a method failed; it has no entry there.
    """
    return [_by_method(methods, measure) for measure in measures]


def _by_method(methods: Sequence[Prepared], measure: Callable[[Explain], Values]) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for method in methods:
        if method.explain is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[method.entry.spec.name] = measure(method.explain)
                continue
            except Exception as error:  # a library may raise anything; the other methods go on
                reason = one_line(error)
        warnings.warn(f"{method.entry.spec.name}: {reason}", stacklevel=2)
    return found


def joined(shares: Sequence[Sequence[dict[str, Values]]]) -> dict[str, Values]:
    """What all processes measured, among which the work was dealt out: by method, all numbers in their order."""
    values: dict[str, Values] = {}
    for entry in chain(*zip_longest(*shares)):
        for method, found in (entry or {}).items():
            for name, several in found.items():
                values.setdefault(method, {}).setdefault(name, []).extend(several)
    return values
