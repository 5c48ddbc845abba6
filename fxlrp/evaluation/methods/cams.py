"""Class activation maps from grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import MethodError
from fxlrp.evaluation.methods.base import Attribution, Explain, own_copy, tried
from fxlrp.extras import require


def grad_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None
) -> Explain:
    """Grad-CAM (Selvaraju et al., ICCV 2017), at ``layer`` or the last one with rows and columns."""
    return _of_cam("GradCAM", model, example, layer)


def score_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None
) -> Explain:
    """Score-CAM (Wang et al., CVPR Workshops 2020), at ``layer`` or the last one with rows and columns."""
    return _of_cam("ScoreCAM", model, example, layer)


def _of_cam(name: str, model: nn.Module, example: Tensor, layer: str | None) -> Explain:
    cams = require("pytorch_grad_cam", "evaluate")
    targets_of = require("pytorch_grad_cam.utils.model_targets", "evaluate").ClassifierOutputTarget
    own = own_copy(model)
    own.requires_grad_(True)  # the hooks of grad-cam want gradients of parameters allowed
    target_layer = own.get_submodule(layer or last_spatial(model, example))
    cam = getattr(cams, name)(model=own, target_layers=[target_layer])

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        with redirect_stderr(StringIO()):  # Score-CAM draws a bar for every image
            maps = cam(input_tensor=inputs, targets=[targets_of(int(target)) for target in targets])
        return Attribution(torch.as_tensor(maps, device=inputs.device).to(inputs.dtype))

    return tried(explain, example)


def last_spatial(model: nn.Module, example: Tensor) -> str:
    """The module that gives the last feature map: the last with several rows and columns, and no child like that.

    Raises:
        MethodError: there is none.
    """
    found: list[str] = []
    hooks = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[-2:]) > 1:
                found.append(name)

        return hook

    try:
        for name, module in model.named_modules():
            if name:
                hooks.append(module.register_forward_hook(watch(name)))
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise MethodError("no module gives a feature map with rows and columns")
    # A block returns after its parts: of those that end together the outermost is the block.
    return found[-1]
