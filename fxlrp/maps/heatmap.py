"""Heatmaps from relevance."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.common.errors import InputError

CHANNEL_AXIS = "fxlrp_channel_axis"
"""The attribute of a tensor of relevance that says which axis holds the channels."""


def heatmap(relevance: Tensor) -> Tensor:
    """The attribution map: the sum over channels.

    Args:
        relevance: (batch, channels, height, width), or (channels, height, width); of several
            targets (batch, targets, channels, height, width).

    Returns:
        (batch, height, width), or (height, width), or (batch, targets, height, width).

    The relevance of an explanation knows where its channels are: of signals (batch, channels, length) the map is
    (batch, length), of volumes (batch, depth, height, width). What was made of it (a slice, a copy) is taken by the
    shapes above.

    Raises:
        InputError: it has another shape.
    """
    axis = getattr(relevance, CHANNEL_AXIS, None)
    if axis is not None:
        return relevance.sum(dim=axis)
    if not isinstance(relevance, Tensor) or relevance.dim() not in (3, 4, 5):
        got = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
        raise InputError(f"a heatmap is made of relevance (batch, channels, height, width), not {got}")
    return relevance.sum(dim=-3)


def patch_map(maps: Tensor, patch: tuple[int, int]) -> Tensor:
    """Maps by patch: what each patch received is spread smoothly over its pixels.

    A model that reads patches mixes the pixels of one in one product, so relevance of single pixels says little of
    place there. Each map keeps its sum; pixels beyond the last whole patch, which such a model does not read, get none.

    Args:
        maps: (..., height, width), such as :func:`heatmap` gives.
        patch: height and width of a patch, such as ``Explanation.patch``.

    Returns:
        The shape of ``maps``.

    Raises:
        InputError: there is no whole patch in a map, or the arguments are something else.
    """
    if not isinstance(patch, Sequence) or len(patch) != 2 or not all(isinstance(n, int) and n > 0 for n in patch):
        raise InputError(f"patch={patch!r}: give the height and width of a patch, in pixels")
    if not isinstance(maps, Tensor) or maps.dim() < 2 or not maps.is_floating_point():
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"patch_map takes floating point maps (..., height, width), not {got}")
    size = tuple(maps.shape[-2:])
    count = [length // part for length, part in zip(size, patch, strict=True)]
    if not all(count):
        raise InputError(f"maps of {size[0]} × {size[1]} pixels hold no whole patch of {patch[0]} × {patch[1]}")
    rows, columns = (number * part for number, part in zip(count, patch, strict=True))
    means = F.avg_pool2d(maps.reshape(-1, 1, *size), patch)
    spread = F.interpolate(means, (rows, columns), mode="bilinear")
    return F.pad(spread, (0, size[1] - columns, 0, size[0] - rows)).reshape(maps.shape)


def layer_map(relevance: Tensor, height: int, width: int) -> Tensor | None:
    """The map of relevance inside a network: the sum over channels, enlarged to the size of the picture.

    Channels may come first or last: the two axes in the picture's proportions are rows and columns. Tokens before
    the patches (class and register tokens) are left out.

    Args:
        relevance: of one item, (channels, rows, columns), (rows, columns, channels) or (tokens, channels).
        height: of the picture.
        width: of the picture.

    Returns:
        (height, width), or ``None`` if no rows and columns have the picture's proportions.
    """
    size = map_size(relevance.shape, height, width)
    return None if size is None else _enlarged(relevance[None], size, height, width)[0]


def stage_map(stages: Collection[Tensor], height: int, width: int, *, sigma: float = 0.0) -> Tensor:
    """One map of the relevance at several stages of a network: the mean of their maps, each enlarged to the picture.

    The relevance of a position is spread over its pixels. If the picture is larger by a whole factor, a stage's map
    adds up to what the stage received, without class tokens; if relevance is conserved, so does the mean.

    Args:
        stages: the relevance of the same items at the input or at checkpoints (``Explanation.checkpoints``): (batch,
            channels, rows, columns), (batch, rows, columns, channels) or (batch, tokens, channels).
        height: of the picture.
        width: of the picture.
        sigma: standard deviation, in pixels, of the Gaussian that smooths the mean and keeps its sum; 0: no smoothing.

    Returns:
        (batch, height, width).

    Raises:
        InputError: there is no stage, a stage has no rows and columns in the picture's proportions, their batches
            differ, ``sigma`` is negative, or the size is no positive whole number.
    """
    if isinstance(stages, Tensor) or not isinstance(stages, Collection) or not len(stages):
        raise InputError("a map is made of one stage at least, of a list of tensors")
    if not isinstance(sigma, Real) or not 0 <= sigma < math.inf:
        raise InputError(f"sigma={sigma!r}: give a number of pixels, or 0")
    if not all(isinstance(size, Integral) and size > 0 for size in (height, width)):
        raise InputError(f"height={height!r}, width={width!r}: give the size of the picture, in pixels")
    maps = [_spread(stage, height, width) for stage in stages]
    if len({len(each) for each in maps}) > 1:
        raise InputError(f"the stages are of {', '.join(str(len(each)) for each in maps)} items, not of the same")
    mean = torch.stack(maps).mean(dim=0)
    if not sigma:
        return mean
    rows, columns = (_gaussian(length, sigma, mean) for length in (height, width))
    return rows @ mean @ columns.T


def _gaussian(length: int, sigma: float, like: Tensor) -> Tensor:
    """Weights of a blur, (to, from): each column adds up to 1, so that nothing leaves the picture."""
    positions = torch.arange(length, dtype=like.dtype, device=like.device)
    weights = torch.exp(-((positions[:, None] - positions) ** 2) / (2 * sigma**2))
    return weights / weights.sum(dim=0)


def _spread(stage: Tensor, height: int, width: int) -> Tensor:
    """The maps of a stage, (batch, height, width): the relevance of a position is shared among its pixels."""
    size = map_size(stage.shape[1:], height, width) if isinstance(stage, Tensor) else None
    if size is None:
        got = tuple(stage.shape) if isinstance(stage, Tensor) else type(stage).__name__
        raise InputError(f"relevance {got} has no rows and columns that are a picture of {height} × {width}")
    return _enlarged(stage, size, height, width) * (math.prod(size) / (height * width))


def _enlarged(relevance: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """The sums over channels, interpolated from ``size`` to (batch, height, width)."""
    if relevance.dim() == 3:
        sums = relevance[:, relevance.shape[1] - math.prod(size) :].sum(dim=2).reshape(-1, *size)
    else:
        sums = relevance.sum(dim=1 if tuple(relevance.shape[2:]) == size else 3)
    precise = torch.promote_types(sums.dtype, torch.float32)
    return F.interpolate(sums[:, None].to(precise), (height, width), mode="bilinear")[:, 0]


_MOST_EXTRA_TOKENS = 7
"""Tokens that may come before the patches."""


def map_size(shape: Sequence[int], height: int, width: int) -> tuple[int, int] | None:
    """The rows and columns of a value inside a network, as :func:`layer_map` finds them.

    Args:
        shape: of one item.
        height: of the picture.
        width: of the picture.
    """

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) <= max(height, width)  # up to one row or column

    if len(shape) == 3:
        first, second, third = shape
        if fits(second, third):
            return second, third
        return (first, second) if fits(first, second) else None
    if len(shape) == 2:
        for count in range(shape[0], max(shape[0] - _MOST_EXTRA_TOKENS - 1, 1), -1):
            rows = round(math.sqrt(count * height / width))
            if rows > 1 and count % rows == 0 and rows * width == count // rows * height:
                return rows, count // rows
    return None


def quantize_heat(heatmap: Tensor, levels: int = 8, *, method: str = "bins") -> Tensor:
    """Heat Quantization: each map rounded down to a few levels (Otsuki et al., ECCV 2024, Eq. 8).

    Args:
        heatmap: (batch, height, width), (height, width) or (batch, rows, height, width); each map
            has its own levels.
        levels: Q, at least 2 (1 for ``"bins"`` is one flat level).
        method: ``"bins"``: Q bins of width ``(max − min) / Q``, each rounded down to
            its lower edge, as Eq. 8 is meant. ``"linspace"``: rounded down to ``linspace(min, max, Q)``,
            as in the released code: Q − 1 bins, and the maximum keeps its own level.

    Returns:
        The shape of ``heatmap``; a constant map is unchanged.
    """
    if method not in ("bins", "linspace"):
        raise InputError(f"method={method!r}: choose 'bins' or 'linspace'")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < (1 if method == "bins" else 2):
        raise InputError(f"levels must be a whole number of at least 2, not {levels!r}")
    if not isinstance(heatmap, Tensor) or heatmap.dim() not in (2, 3, 4) or not heatmap.is_floating_point():
        raise InputError("quantize_heat takes a floating point map (batch, height, width) or (height, width)")
    low, high = heatmap.amin(dim=(-2, -1), keepdim=True), heatmap.amax(dim=(-2, -1), keepdim=True)
    bins = levels if method == "bins" else levels - 1
    width = (high - low) / bins
    constant = width == 0
    index = ((heatmap - low) / torch.where(constant, 1, width)).floor()
    # The maximum itself lies on the upper edge of the last bin.
    floored = low + index.clamp(max=bins - 1) * width
    if method == "linspace":
        floored = torch.where(heatmap == high, high, floored)
    return torch.where(constant, heatmap, floored)
