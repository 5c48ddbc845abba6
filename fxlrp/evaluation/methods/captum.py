"""Baselines from Captum."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fxlrp.common.errors import MethodError
from fxlrp.common.extras import require
from fxlrp.evaluation.methods.base import Attribution, Explain, own_copy


def captum_lrp(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """LRP-ε (Bach et al., 2015), as Captum has it."""
    attr = require("captum.attr", "evaluate")
    return _of_captum(attr.LRP(own_copy(model)))


def integrated_gradients(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, steps: int = 50
) -> Explain:
    """Integrated Gradients (Sundararajan et al., ICML 2017), from an input of zeros: the mean colour, if normalised."""
    attr = require("captum.attr", "evaluate")
    return _of_captum(attr.IntegratedGradients(model), n_steps=steps, internal_batch_size=16)


def guided_backprop(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """Guided Backpropagation (Springenberg et al., 2015)."""
    attr = require("captum.attr", "evaluate")
    _needs_modules(model, (nn.ReLU,), "Guided Backprop", "an ordinary gradient")
    return _of_captum(attr.GuidedBackprop(own_copy(model)))


def deep_lift(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """DeepLIFT (Shrikumar et al., ICML 2017), from zero."""
    attr = require("captum.attr", "evaluate")
    nonlinear = tuple(require("captum.attr._core.deep_lift", "evaluate").SUPPORTED_NON_LINEAR)
    _needs_modules(model, nonlinear, "DeepLIFT", "input × gradient")
    return _of_captum(attr.DeepLift(own_copy(model)))


def input_x_gradient(model: nn.Module, example: Tensor, checkpoints: tuple[str, ...]) -> Explain:
    """Input × gradient (Shrikumar et al., 2016)."""
    attr = require("captum.attr", "evaluate")
    return _of_captum(attr.InputXGradient(model))


def _needs_modules(model: nn.Module, kinds: tuple[type[nn.Module], ...], what: str, otherwise: str) -> None:
    """Raise where a method that hooks into modules would find none, and would silently be another method."""
    if not any(type(module) in kinds for module in model.modules()):
        why = f"this model has none: it would be {otherwise}"
        raise MethodError(f"{what} hooks into modules such as nn.ReLU, and {why}")


def _of_captum(attribution: Any, **options: Any) -> Explain:
    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        relevance = attribution.attribute(inputs.detach().clone().requires_grad_(), target=targets, **options)
        return Attribution(relevance.detach().sum(dim=1))

    return explain
