"""Maps of regions: relevance summed over the segments of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.common.extras import require

SCALES = (50.0, 100.0, 150.0, 250.0, 500.0, 1200.0)
"""Scales of the segmentation, as XRAI takes them (Kapishnikov et al., ICCV 2019): the larger the coarser."""


def region_map(
    relevance: Tensor, images: Tensor, *, scales: Sequence[float] = SCALES, smallest: int = 150
) -> Tensor:
    """Relevance spread evenly over the segments of each image, the mean over several segmentations.

    What belongs together gets one value, as the eye expects. Each segment keeps what it received, so that the map
    adds up to the relevance. Segments are those of Felzenszwalb and Huttenlocher (IJCV 2004), by scikit-image.

    Args:
        relevance: (batch, channels, height, width), or a map (batch, height, width).
        images: (batch, channels, height, width), the photographs; any normalisation will do.
        scales: of the segmentations, positive.
        smallest: pixels of the smallest segment.

    Returns:
        (batch, height, width), with the sum of ``relevance`` per item, in its dtype where that is a floating one.

    Raises:
        InputError: shapes do not fit, there is no scale, a scale is not positive, or a value is not finite.
        MissingExtraError: scikit-image is not installed.
    """
    if not isinstance(relevance, Tensor) or not isinstance(images, Tensor):
        raise InputError("relevance and images are tensors, (batch, channels, height, width)")
    maps = relevance.sum(dim=1) if relevance.dim() == 4 else relevance
    if maps.dim() != 3 or images.dim() != 4 or maps.shape != (images.shape[0], *images.shape[2:]):
        raise InputError(
            f"relevance {tuple(relevance.shape)} and images {tuple(images.shape)}: give (batch, channels, height, "
            "width) of the same pictures, or a map (batch, height, width) of them"
        )
    if not all(map(_is_positive, [*_listed(scales), smallest])) or not _listed(scales) or int(smallest) != smallest:
        raise InputError(f"scales={scales!r}, smallest={smallest!r}: give positive numbers, one scale at least")
    if not images.numel() or images.dtype in (torch.bool, *_COMPLEX) or maps.dtype in (torch.bool, *_COMPLEX):
        raise InputError("images and relevance are numbers, one pixel at least")
    for name, values in (("relevance", maps), ("images", images)):
        if not bool(values.isfinite().all()):
            raise InputError(f"{name} is not finite: a NaN or an infinity has no place in a map of regions")
    segmentation = require("skimage.segmentation", "regions")
    found = torch.zeros_like(maps, dtype=torch.float64)
    for item, (values, image) in enumerate(zip(maps.detach().double(), images.detach(), strict=True)):
        low, high = image.amin(), image.amax()
        pixels = ((image - low) / (high - low).clamp(min=1e-12)).movedim(0, -1).cpu().double().numpy()
        for scale in scales:
            labels = segmentation.felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=smallest, channel_axis=-1)
            segments = torch.from_numpy(labels).to(values.device).flatten()
            sums = values.new_zeros(int(segments.max()) + 1).index_add(0, segments, values.flatten())
            found[item] += (sums / segments.bincount())[segments].reshape(values.shape)
    return (found / len(_listed(scales))).to(maps.dtype if maps.is_floating_point() else torch.get_default_dtype())


_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def _listed(scales: object) -> list[object]:
    return list(scales) if isinstance(scales, Sequence | np.ndarray) and not isinstance(scales, str) else []


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf
