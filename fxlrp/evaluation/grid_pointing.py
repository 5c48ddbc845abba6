"""The grid pointing game: does a map point at the image of the class that is asked for?

Images of different classes are put in a grid, which the model sees as one image. For each class in it the share of
positive relevance inside its own cell is measured; by chance it is one over the number of cells. Böhle et al.
(CVPR 2021); Rao et al. (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxlrp.common.errors import EvaluationError

Explain = Callable[[Tensor, Tensor], Tensor]
"""``(images, targets) -> maps``: (batch, channels, height, width) and (batch,) to (batch, rows, columns)."""


class GridResult(NamedTuple):
    """What the maps of one grid say.

    Attributes:
        shares: per class in the grid, the share of positive relevance inside its cell.
        correlation: the mean correlation between the maps of two classes.
    """

    shares: list[float]
    correlation: float


def grids(
    images: Tensor, labels: Sequence[int], count: int, *, side: int = 2, seed: int = 0
) -> list[tuple[Tensor, list[int]]]:
    """Grids of images of different classes.

    Args:
        images: (images, channels, height, width), preprocessed.
        labels: the class of each, as the model predicts it with confidence.
        count: how many grids.
        side: cells per side.
        seed: of the choice.

    Returns:
        Per grid (channels, side · height, side · width), and the classes in reading order.

    Raises:
        EvaluationError: there are fewer classes than cells.
    """
    if len(set(labels)) < side * side:
        raise EvaluationError(f"a grid of {side} × {side} needs as many classes, not {len(set(labels))}")
    generator = torch.Generator().manual_seed(seed)
    made: list[tuple[Tensor, list[int]]] = []
    while len(made) < count:
        chosen: list[int] = []
        for index in torch.randperm(len(labels), generator=generator).tolist():
            if labels[index] not in [labels[other] for other in chosen]:
                chosen.append(index)
            if len(chosen) == side * side:
                break
        rows = [torch.cat([images[i] for i in chosen[row * side : (row + 1) * side]], dim=2) for row in range(side)]
        made.append((torch.cat(rows, dim=1), [labels[i] for i in chosen]))
    return made


def point(explain: Explain, grid: Tensor, classes: Sequence[int]) -> GridResult:
    """Play the game on one grid.

    Args:
        explain: makes maps, whose rows and columns are those of the grid or a whole part of them.
        grid: (channels, height, width).
        classes: in the order of the cells, row by row.
    """
    side = round(len(classes) ** 0.5)
    targets = torch.tensor(list(classes), device=grid.device)
    maps = torch.stack([explain(grid[None], target[None])[0] for target in targets])
    height, width = maps.shape[1] // side, maps.shape[2] // side
    positive = maps.clamp(min=0)
    shares = []
    for number in range(len(classes)):
        row, column = divmod(number, side)
        cell = positive[number, row * height : (row + 1) * height, column * width : (column + 1) * width]
        total = float(positive[number].sum())
        shares.append(float(cell.sum()) / total if total > 0 else 0.0)
    flat = maps.flatten(1).double()
    correlations = torch.corrcoef(flat)
    others = ~torch.eye(len(classes), dtype=torch.bool)
    return GridResult(shares, float(correlations[others].nan_to_num().mean()))
