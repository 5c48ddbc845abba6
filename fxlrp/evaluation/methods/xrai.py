"""XRAI from saliency."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.common.extras import require
from fxlrp.evaluation.methods.base import Attribution, Explain


def xrai(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, steps: int = 50, fast: bool = False
) -> Explain:
    """XRAI (Kapishnikov et al., ICCV 2019): Integrated Gradients of the probability, ranked by segments of the image.

    Args:
        model: is explained; it is not changed.
        example: what it takes.
        checkpoints: are not used.
        steps: of each of the two Integrated Gradients, from the least and from the largest value of the image.
        fast: whether segments are ranked once instead of after each that is chosen.
    """
    saliency = require("saliency.core", "evaluate")
    parameters = saliency.XRAIParameters(steps=steps, algorithm="fast" if fast else "full")

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        def gradients(images: Any, call_model_args: int, expected_keys: Any = None) -> dict[str, Any]:
            leaf = torch.as_tensor(images).to(inputs).movedim(-1, 1).requires_grad_()
            with torch.enable_grad():
                chosen = model(leaf).softmax(dim=1)[:, call_model_args].sum()
                (gradient,) = torch.autograd.grad(chosen, leaf)
            return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.movedim(1, -1).double().cpu().numpy()}

        maps = [
            saliency.XRAI().GetMask(image.movedim(0, -1).detach().double().cpu().numpy(), gradients, int(target),
                                    batch_size=16, extra_parameters=parameters)
            for image, target in zip(inputs, targets, strict=True)
        ]  # fmt: skip
        return Attribution(torch.as_tensor(np.stack(maps)).to(inputs))

    return explain
