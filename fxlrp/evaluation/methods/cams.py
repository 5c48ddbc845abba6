"""Class activation maps from grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.errors import MethodError
from fxlrp.common.extras import require
from fxlrp.evaluation.methods.base import Attribution, Explain, over_regions, own_copy


def grad_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None,
    log_odds: bool = False, regions: bool = False,
) -> Explain:  # fmt: skip
    """Grad-CAM (Selvaraju et al., ICCV 2017), at the output of ``layer`` or the last feature map.

    Args:
        model: is explained; a copy of it is.
        example: what it takes.
        checkpoints: are not used.
        layer: the module whose output is weighted; ``None``: the last feature map.
        log_odds: whether to take the class against the others, as the start of that name does.
        regions: whether maps are summed over the segments of the image.
    """
    explain = _of_cam("GradCAM", model, example, layer, contrast=log_odds)
    return over_regions(explain) if regions else explain


def layer_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None
) -> Explain:
    """LayerCAM (Jiang et al., IEEE TIP 2021), at the output of ``layer`` or the last feature map."""
    return _of_cam("LayerCAM", model, example, layer)


def score_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], forward: nn.Module | None = None, *,
    layer: str | None = None,
) -> Explain:  # fmt: skip
    """Score-CAM (Wang et al., CVPR Workshops 2020), at the output of ``layer`` or the last feature map.

    ``forward`` runs the passes of the model, one per channel; ``None``: a copy of the model.
    """
    return _of_cam("ScoreCAM", model, example, layer, forward)


def _of_cam(
    name: str, model: nn.Module, example: Tensor, layer: str | None, forward: nn.Module | None = None, *,
    contrast: bool = False,
) -> Explain:  # fmt: skip
    cams = require("pytorch_grad_cam", "evaluate")
    of_class = require("pytorch_grad_cam.utils.model_targets", "evaluate").ClassifierOutputTarget
    targets_of = _against_others if contrast else of_class
    own = own_copy(model)
    own.to(memory_format=torch.channels_last)  # the faster one, which matters here
    own.requires_grad_(True)  # the hooks of grad-cam want gradients of parameters allowed
    target_layer = last_feature_map(own, example) if layer is None else own.get_submodule(layer)
    if layer is not None and (calls := _Calls(own, example).count(target_layer)) != 1:
        raise MethodError(f"layer {layer} is called {calls} times, and grad-cam would take its first output")
    cam = getattr(cams, name)(model=own, target_layers=[target_layer])
    if forward is not None:
        cam.model = forward
        cam.batch_size = getattr(forward, "batch_size", 16)

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        with redirect_stderr(StringIO()):  # Score-CAM draws a bar for every image
            maps = cam(input_tensor=inputs, targets=[targets_of(int(target)) for target in targets])
        return Attribution(torch.as_tensor(maps, device=inputs.device).to(inputs.dtype))

    return explain


def _against_others(target: int) -> Callable[[Tensor], Tensor]:
    """The output of one item, (classes,), to the log of the odds of a class.

    Its gradient, one at the class and minus their probabilities at the others, is what the start ``"log_odds"``
    weights the logits by.
    """

    def log_of_odds(output: Tensor) -> Tensor:
        others = torch.arange(output.shape[-1], device=output.device) != target
        return output[target] - output[others].logsumexp(0)

    return log_of_odds


def last_feature_map(model: nn.Module, example: Tensor) -> nn.Module:
    """The module that gives the last feature map: the last with several rows and columns, and no child like that.

    Where that module is called several times, as a ReLU that all blocks share, the one that takes the feature map gets
    an identity in front, and that is it.

    Args:
        model: is changed so.
        example: what it takes.

    Raises:
        MethodError: there is none.
    """
    calls = _Calls(model, example)
    # A block returns after its parts: of those that end together the outermost is the block.
    last, features = next(((module, out) for module, _, out in reversed(calls.ended) if _has_rows(out)), (None, None))
    if last is None:
        raise MethodError("no module gives a feature map with rows and columns")
    if calls.count(last) == 1:
        return last
    reader = next((module for module, value, _ in calls.ended if value is features), None)
    if reader is None or calls.count(reader) > 1:
        raise MethodError("the module that gives the last feature map is called several times: name a layer")
    path = next(path for path, module in model.named_modules() if module is reader)
    parent, _, name = path.rpartition(".")
    front = nn.Identity()
    setattr(model.get_submodule(parent), name, nn.Sequential(front, reader))
    return front


class _Calls:
    """The calls of a model's modules for an example, in the order in which they end."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.ended: list[tuple[nn.Module, Any, Any]] = []
        hooks = [module.register_forward_hook(self._seen) for path, module in model.named_modules() if path]
        try:
            with torch.no_grad():
                model(example)
        finally:
            for hook in hooks:
                hook.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.ended.append((module, inputs[0] if inputs else None, output))

    def count(self, module: nn.Module) -> int:
        return sum(called is module for called, _, _ in self.ended)


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and min(value.shape[-2:]) > 1
