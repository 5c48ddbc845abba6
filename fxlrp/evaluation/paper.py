"""What the seed paper reports: Otsuki et al., ECCV 2024. All scores in per cent."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """A row of the paper's tables.

    Attributes:
        name: what the paper calls it.
        insertion: ``None``: not reported.
        deletion: ``None``: not reported.
        score: the ID score.
    """

    name: str
    insertion: float | None
    deletion: float | None
    score: float | None


TABLE_1 = {
    "imagenet": {
        "lrp": Reported("LRP", 9.5, 8.3, 1.1),
        "integrated_gradients": Reported("Integrated Gradients", 5.2, 6.2, -1.1),
        "guided_backprop": Reported("Guided Backprop", 11.5, 5.7, 5.7),
        "deep_lift": Reported("DeepLIFT", 5.6, 6.3, -0.7),
        "grad_cam": Reported("Grad-CAM", 49.7, 12.6, 37.1),
        "score_cam": Reported("Score-CAM", 48.8, 13.3, 35.5),
        "iv": Reported("proposed (iv)", 56.3, 1.8, 54.5),
    },
    "cub": {
        "lrp": Reported("LRP", None, None, 1.1),
        "integrated_gradients": Reported("Integrated Gradients", None, None, 0.6),
        "guided_backprop": Reported("Guided Backprop", None, None, 2.8),
        "deep_lift": Reported("DeepLIFT", None, None, 0.6),
        "grad_cam": Reported("Grad-CAM", None, None, 45.3),
        "score_cam": Reported("Score-CAM", None, None, 45.7),
        "iv": Reported("proposed (iv)", None, None, 58.2),
    },
}
"""Baselines and the proposed method, ResNet-50; by data set."""

TABLE_2 = {
    "i": Reported("(i) symmetric, projections only", None, None, 51.0),
    "ii": Reported("(ii) symmetric, all skips", None, None, 51.7),
    "iii": Reported("(iii) ratio, projections only", None, None, 51.0),
    "iv": Reported("(iv) ratio, all skips", None, None, 54.5),
}
"""The variants of the split."""

TABLE_3 = {0: Reported("(i) without Heat Quantization", None, None, 37.6),
           8: Reported("(i) with Heat Quantization", None, None, 51.0)}  # fmt: skip
"""Heat Quantization; by the number of levels."""

TABLE_C = {
    "iv": Reported("z⁺ everywhere (iv)", 56.3, 1.8, 54.5),
    "mixture": Reported("ε after the eighth bottleneck, z⁺ before", 64.6, 0.2, 64.4),
}
"""The mixture of rules."""

FAILURES = Reported("images with ID ≤ 0.371, of 1,000", None, None, 31.1)
"""The error analysis, D.4."""

ROLES = sorted({*TABLE_1["imagenet"], *TABLE_2, *TABLE_C})
"""What ``paper`` may be in a configuration."""
