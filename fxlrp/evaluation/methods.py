"""The methods that are compared: fxlrp in all its ways, baselines from well-kept libraries, and floors.

A method is a name and a few options. :func:`prepare` makes it into a function from one image and its class to an
:class:`Attribution`; what cannot be made says why with a :class:`~fxlrp.errors.MethodError`.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.errors import FxlrpError, MethodError
from fxlrp.evaluation.conservation import INPUT, arrived
from fxlrp.evaluation.insertion import blurred
from fxlrp.extras import require
from fxlrp.heatmap import heatmap
from fxlrp.models import import_callable


@dataclass(frozen=True)
class Attribution:
    """What a method says about images.

    Attributes:
        heatmaps: (batch, height, width), like the images.
        start: (batch,), what entered at the output; ``None`` where nothing is distributed.
        checkpoints: by module, (batch,), what arrived there; ``"input"`` is the image itself.
    """

    heatmaps: Tensor
    start: Tensor | None = None
    checkpoints: dict[str, Tensor] = field(default_factory=dict)


Explain = Callable[[Tensor, Tensor], Attribution]
"""From what the model takes, (batch, channels, height, width), and classes, (batch,)."""


@dataclass(frozen=True)
class MethodSpec:
    """A method as a configuration names it.

    Attributes:
        name: what tables call it.
        kind: one of :data:`KINDS`.
        options: those of that kind.
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def prepare(spec: MethodSpec, model: nn.Module, example: Tensor, checkpoints: tuple[str, ...] = ()) -> Explain:
    """The function that explains ``model`` by a method.

    Args:
        spec: the method.
        model: from images to logits, in eval mode. It is not changed: what changes a model gets a copy.
        example: what the model takes, (1, channels, height, width).
        checkpoints: modules at whose input relevance is added up, by methods that propagate it.

    Raises:
        MethodError: there is no such method, or this model cannot be explained by it.
    """
    if spec.kind not in KINDS:
        raise MethodError(f"method {spec.name!r}: kind {spec.kind!r} is none of {', '.join(KINDS)}")
    try:
        return KINDS[spec.kind](model, example, checkpoints, **spec.options)
    except FxlrpError as error:
        raise MethodError(str(error)) from error
    except TypeError as error:
        if "argument" in str(error):
            raise MethodError(f"method {spec.name!r}: {error}") from error
        raise MethodError(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # a library may raise anything where it cannot follow a model
        raise MethodError(f"{type(error).__name__}: {error}") from error


# fxlrp --------------------------------------------------------------------------------------------


def _fxlrp(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, preset: str = "conserving",
    rules: Mapping[str, str] | None = None, split: str | None = None, identity_skips: bool = True,
    start: str = "probability", at: str | None = None, smooth: float = 0.0, differentiable: bool = False,
) -> Explain:  # fmt: skip
    """Relevance by a preset of fxlrp.

    ``rules`` are texts, as the command line takes them; ``at`` shows the map at the input of a module, enlarged;
    ``smooth`` is the σ in pixels of a Gaussian over the map, for an image of 224.
    """
    from fxlrp.compiler import compile
    from fxlrp.passes.optimize import DEFAULT, PACK_WEIGHTS
    from fxlrp.rule_text import read_rules

    wanted = tuple(dict.fromkeys((*checkpoints, *([at] if at else []))))
    explainer = compile(
        model, preset, rules=read_rules([f"{k}={v}" for k, v in (rules or {}).items()]), split=split,
        identity_skips=identity_skips, start=start, checkpoints=wanted, example_inputs=example,
        # Weights are packed from the second call on, which changes the last digits: the first image would differ.
        optimize=tuple(name for name in DEFAULT if name != PACK_WEIGHTS),
    )  # fmt: skip

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        explanation = explainer(inputs, target=targets)
        relevance = explanation.relevance if at is None else explanation.checkpoints[at]
        maps = _enlarged(heatmap(relevance), inputs)
        if smooth:
            maps = blurred(maps[:, None], smooth * min(inputs.shape[-2:]) / 224)[:, 0]
        sums = arrived(explanation)
        return Attribution(maps, explanation.start, {name: sums[name] for name in (INPUT, *checkpoints)})

    return explain


def _enlarged(maps: Tensor, inputs: Tensor) -> Tensor:
    if maps.shape[-2:] == inputs.shape[-2:]:
        return maps
    return F.interpolate(maps[:, None], inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


# Captum -------------------------------------------------------------------------------------------


def _captum_lrp(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """LRP-ε (Bach et al., 2015), as Captum has it."""
    attr = require("captum.attr", "evaluate")
    return _tried(_of_captum(attr.LRP(_own(model))), example)


def _integrated_gradients(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, steps: int = 50
) -> Explain:
    """Integrated Gradients (Sundararajan et al., ICML 2017), from black."""
    attr = require("captum.attr", "evaluate")
    return _tried(_of_captum(attr.IntegratedGradients(model), n_steps=steps, internal_batch_size=16), example)


def _guided_backprop(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """Guided Backpropagation (Springenberg et al., 2015)."""
    attr = require("captum.attr", "evaluate")
    _needs_modules(model, (nn.ReLU,), "Guided Backprop", "an ordinary gradient")
    return _tried(_of_captum(attr.GuidedBackprop(_own(model))), example)


def _deep_lift(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """DeepLIFT (Shrikumar et al., ICML 2017), from zero."""
    attr = require("captum.attr", "evaluate")
    nonlinear = tuple(require("captum.attr._core.deep_lift", "evaluate").SUPPORTED_NON_LINEAR)
    _needs_modules(model, nonlinear, "DeepLIFT", "input × gradient")
    return _tried(_of_captum(attr.DeepLift(_own(model))), example)


def _input_x_gradient(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """Input × gradient (Shrikumar et al., 2016)."""
    attr = require("captum.attr", "evaluate")
    return _tried(_of_captum(attr.InputXGradient(model)), example)


def _needs_modules(model: nn.Module, kinds: tuple[type[nn.Module], ...], what: str, otherwise: str) -> None:
    """Raise where a method that hooks into modules would find none, and would silently be another method."""
    if not any(type(module) in kinds for module in model.modules()):
        why = f"this model has none: it would be {otherwise}"
        raise MethodError(f"{what} hooks into modules such as nn.ReLU, and {why}")


def _of_captum(attribution: Any, **options: Any) -> Explain:
    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        found = attribution.attribute(inputs.detach().clone().requires_grad_(), target=targets, **options)
        return Attribution(found.detach().sum(dim=1))

    return explain


# grad-cam -----------------------------------------------------------------------------------------


def _grad_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None
) -> Explain:
    """Grad-CAM (Selvaraju et al., ICCV 2017), at ``layer`` or the last one with rows and columns."""
    return _of_cam("GradCAM", model, example, layer)


def _score_cam(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, layer: str | None = None
) -> Explain:
    """Score-CAM (Wang et al., CVPR Workshops 2020), at ``layer`` or the last one with rows and columns."""
    return _of_cam("ScoreCAM", model, example, layer)


def _of_cam(name: str, model: nn.Module, example: Tensor, layer: str | None) -> Explain:
    cams = require("pytorch_grad_cam", "evaluate")
    targets_of = require("pytorch_grad_cam.utils.model_targets", "evaluate").ClassifierOutputTarget
    own = _own(model)
    own.requires_grad_(True)  # the hooks of grad-cam want gradients of parameters allowed
    target_layer = own.get_submodule(layer or last_spatial(model, example))
    cam = getattr(cams, name)(model=own, target_layers=[target_layer])

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        with redirect_stderr(StringIO()):  # Score-CAM draws a bar for every image
            maps = cam(input_tensor=inputs, targets=[targets_of(int(target)) for target in targets])
        return Attribution(torch.as_tensor(maps, device=inputs.device).to(inputs.dtype))

    return _tried(explain, example)


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


# Floors -------------------------------------------------------------------------------------------


def _random(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, seed: int = 0) -> Explain:
    """Noise, the same for the same image."""

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        maps = []
        for image in inputs:
            content = zlib.crc32(image.detach().cpu().contiguous().numpy().tobytes(), seed & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(content)
            maps.append(torch.rand(image.shape[-2:], generator=generator))
        return Attribution(torch.stack(maps).to(inputs))

    return explain


def _edges(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """The strength of edges, by Sobel's operator: what a map shows that knows the image and not the model."""
    ramp = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        grey = F.pad(inputs.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across, down = F.conv2d(grey, torch.stack([ramp, ramp.T])[:, None].to(grey)).unbind(1)
        return Attribution(torch.hypot(across, down))

    return explain


# Others -------------------------------------------------------------------------------------------


def _python(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, function: str,
    options: Mapping[str, Any] | None = None,
) -> Explain:  # fmt: skip
    """A method of one's own: ``package.module:function``.

    The function takes the model and ``options``, and returns a function from inputs, (batch, channels, height,
    width), and classes, (batch,), to maps, (batch, height, width).
    """
    made = import_callable(function)(model, **(options or {}))

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        maps = made(inputs, targets)
        expected = (len(inputs), *inputs.shape[-2:])
        if not isinstance(maps, Tensor) or maps.shape != expected:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise MethodError(f"{function} must give maps {expected}, not {got}")
        return Attribution(maps.detach())

    return explain


KINDS: dict[str, Callable[..., Explain]] = {
    "fxlrp": _fxlrp,
    "captum_lrp": _captum_lrp,
    "integrated_gradients": _integrated_gradients,
    "guided_backprop": _guided_backprop,
    "deep_lift": _deep_lift,
    "input_x_gradient": _input_x_gradient,
    "grad_cam": _grad_cam,
    "score_cam": _score_cam,
    "random": _random,
    "edges": _edges,
    "python": _python,
}
"""The kinds of methods."""


def _own(model: nn.Module) -> nn.Module:
    """A copy for a library that hooks into the model, or that needs activations out of place."""
    own = copy.deepcopy(model)
    for module in own.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return own


def _tried(explain: Explain, example: Tensor) -> Explain:
    """``explain``, after it has explained something: what a library cannot do shows when it runs."""
    attribution = explain(example, torch.zeros(len(example), dtype=torch.long, device=example.device))
    if attribution.heatmaps.shape != (len(example), *example.shape[-2:]):
        raise MethodError(f"it gives maps of shape {tuple(attribution.heatmaps.shape)}")
    return explain
