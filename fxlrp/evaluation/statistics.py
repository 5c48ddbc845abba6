"""What is said of many images: means, and how sure they are."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean over images with its 95 % confidence interval.

    Attributes:
        mean: NaN where nothing was measured.
        low: the lower end of the interval; NaN where there are fewer than two images.
        high: the upper end, likewise.
    """

    mean: float
    low: float
    high: float

    def text(self, scale: float = 100, digits: int = 1) -> str:
        """In per cent: ``27.7 (25.1 to 30.4)``; of one image ``27.7``; of none a dash."""
        if math.isnan(self.mean):
            return "–"
        mean, low, high = (f"{scale * value:.{digits}f}" for value in self)
        return mean if math.isnan(self.low) else f"{mean} ({low} to {high})"


def estimate(values: Array, seed: int = 0) -> Estimate:
    """The mean of one number per image, with its bootstrap interval (BCa: Efron, 1987).

    Where all values are equal, or differ by rounding alone, BCa is undefined; the interval is then the range of the
    values. One image says nothing of others: it has no interval.

    Args:
        values: (images,).
        seed: of the resampling.
    """
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else math.nan, math.nan, math.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled: Any = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, batch=100, method="BCa", rng=np.random.default_rng(seed)
        )  # fmt: skip
    low, high = resampled.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = values.min(), values.max()
    return Estimate(float(values.mean()), float(low), float(high))
