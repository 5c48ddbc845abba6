"""Metrics of Quantus (Hedström et al., JMLR 2023) on the maps of a method."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxlrp.common.errors import InputError


def quantus_scores(
    metric: Any, model: nn.Module, inputs: Tensor, heatmaps: Tensor, targets: Tensor, **options: Any
) -> npt.NDArray[Any]:  # fmt: skip
    """What a metric of Quantus says of maps.

    Args:
        metric: such as ``quantus.Sparseness()``; metrics that need maps of changed inputs or weights also need
            ``explain_func``, for instance ``fxlrp.quantus_explain``.
        model: the classifier, in eval mode.
        inputs: what it takes, (batch, channels, height, width).
        heatmaps: (batch, height, width).
        targets: (batch,).
        **options: what else the metric's call takes.

    Returns:
        One score per image.

    Raises:
        InputError: there is not one map per image, of its size.
    """
    if heatmaps.shape != (inputs.shape[0], *inputs.shape[2:]):
        raise InputError(f"heatmaps of {tuple(heatmaps.shape)} do not fit inputs of {tuple(inputs.shape)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    scores = metric(
        model=model, x_batch=inputs.detach().cpu().numpy(), y_batch=targets.detach().cpu().numpy(),
        a_batch=heatmaps.detach().cpu().numpy()[:, None], device=str(device), **options,
    )  # fmt: skip
    return np.asarray(scores)
