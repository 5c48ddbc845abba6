"""What the seed paper reports: Otsuki et al., ECCV 2024. All scores in per cent."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """A row of the paper's tables.

    Attributes:
        role: the row's name in a configuration: ``paper = ROLE``.
        insertion: ``None``: not reported.
        deletion: ``None``: not reported.
        score: the ID score.
        levels: the number of levels that the row is about; ``None``: it stands beside all of them.
    """

    role: str
    insertion: float | None
    deletion: float | None
    score: float | None
    levels: int | None = None


TABLE_1 = {
    "ImageNet": (
        Reported("lrp", 9.5, 8.3, 1.1),
        Reported("integrated_gradients", 5.2, 6.2, -1.1),
        Reported("guided_backprop", 11.5, 5.7, 5.7),
        Reported("deep_lift", 5.6, 6.3, -0.7),
        Reported("grad_cam", 49.7, 12.6, 37.1),
        Reported("score_cam", 48.8, 13.3, 35.5),
        Reported("iv", 56.3, 1.8, 54.5),
    ),
    "CUB": (
        Reported("lrp", None, None, 1.1),
        Reported("integrated_gradients", None, None, 0.6),
        Reported("guided_backprop", None, None, 2.8),
        Reported("deep_lift", None, None, 0.6),
        Reported("grad_cam", None, None, 45.3),
        Reported("score_cam", None, None, 45.7),
        Reported("iv", None, None, 58.2),
    ),
}
"""Baselines and the proposed method, ResNet-50; by data set."""

TABLE_2 = (
    Reported("i", None, None, 51.0),
    Reported("ii", None, None, 51.7),
    Reported("iii", None, None, 51.0),
    Reported("iv", None, None, 54.5),
)
"""The variants of the split: (i) and (iii) on projections only, (ii) and (iv) on all skips."""

TABLE_3 = (Reported("i", None, None, 37.6, levels=0), Reported("i", None, None, 51.0, levels=8))
"""Heat Quantization."""

TABLE_C = (Reported("iv", 56.3, 1.8, 54.5), Reported("mixture", 64.6, 0.2, 64.4))
"""The mixture of rules: ε after the eighth bottleneck, z⁺ before."""

FAILURES = 31.1
"""Images with ID ≤ 0.371, of 1,000 (D.4)."""

ROLES = tuple(sorted({row.role for row in (*TABLE_1["ImageNet"], *TABLE_2, *TABLE_C)}))
"""What ``paper`` may be in a configuration."""

CLAIMS = (
    ("iv", "i", "ratio on all skips above symmetric on projections only"),
    ("iv", "ii", "ratio above symmetric, all skips"),
    ("iv", "iii", "skips above no skips, ratio"),
    ("ii", "i", "skips above no skips, symmetric"),
    ("iv", "grad_cam", "proposed above Grad-CAM"),
    ("iv", "score_cam", "proposed above Score-CAM"),
    ("iv", "guided_backprop", "proposed above Guided Backprop"),
    ("mixture", "iv", "mixture above z⁺ everywhere"),
)
"""The paper's ordering: which role is above which, in words."""

QUANTIZED = ("i", "ii", "iii", "iv", "grad_cam")
"""The roles whose scores Heat Quantization raises."""


def tables(data: str) -> dict[str, tuple[Reported, ...]]:
    """The paper's tables by headline; Table 1 for ``"cub"`` or other data."""
    where = "CUB" if data == "cub" else "ImageNet"
    return {
        f"Table 1: methods (the paper's: ResNet-50 on {where})": TABLE_1[where],
        "Table 2: splits and skips (the paper's: ResNet-50 on ImageNet)": TABLE_2,
        "Table 3: Heat Quantization, setting (i)": TABLE_3,
        "Table C: a mixture of rules (the paper's: ResNet-50 on ImageNet)": TABLE_C,
    }
