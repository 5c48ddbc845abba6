"""The methods that are compared: fxlrp in all its ways, baselines from well-kept libraries, and floors.

A method is a name and a few options. :func:`prepare` makes it into a function from one image and its class to an
:class:`Attribution`; what cannot be made says why with a :class:`~fxlrp.common.errors.MethodError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fxlrp.common.errors import FxlrpError, MethodError
from fxlrp.evaluation.methods import cams, captum, floors, own, relevance, xrai
from fxlrp.evaluation.methods.base import Attribution, Explain, tried

__all__ = ["KINDS", "Attribution", "Explain", "MethodSpec", "options_of", "prepare"]

KINDS: dict[str, Callable[..., Explain]] = {
    "fxlrp": relevance.relevance,
    "captum_lrp": captum.captum_lrp,
    "integrated_gradients": captum.integrated_gradients,
    "guided_backprop": captum.guided_backprop,
    "deep_lift": captum.deep_lift,
    "input_x_gradient": captum.input_x_gradient,
    "xrai": xrai.xrai,
    "grad_cam": cams.grad_cam,
    "layer_cam": cams.layer_cam,
    "score_cam": cams.score_cam,
    "random": floors.noise,
    "edges": floors.edges,
    "python": own.imported,
}
"""The kinds of methods: from a model, an example, checkpoints and options to the function that explains."""

LIBRARIES = (
    "captum_lrp", "integrated_gradients", "guided_backprop", "deep_lift", "input_x_gradient", "xrai", "grad_cam",
    "layer_cam", "score_cam",
)  # fmt: skip
"""The kinds of which it shows only when they run whether they can explain a model."""

REPEATING = ("score_cam",)
"""The kinds that run the model itself over and over, and can be given what runs it faster."""


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


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind, by name: the keyword-only parameters of its function, and for fxlrp those of compile()."""
    own = inspect.signature(KINDS[kind], eval_str=True).parameters.values()
    options = {option.name: option for option in own if option.kind is option.KEYWORD_ONLY}
    return relevance.compile_options() | options if kind == "fxlrp" else options


def prepare(
    spec: MethodSpec, model: nn.Module, example: Tensor, checkpoints: tuple[str, ...] = (),
    forward: nn.Module | None = None, trial: bool = True,
) -> Explain:  # fmt: skip
    """The function that explains ``model`` by a method.

    Args:
        spec: the method.
        model: from images to logits, in eval mode. It is not changed: what changes a model gets a copy.
        example: what the model takes, (1, channels, height, width).
        checkpoints: modules at whose input relevance is added up, by methods that propagate it.
        forward: what runs ``model`` for methods that do so over and over; ``None``: the model.
        trial: whether a library must have explained ``example`` first.

    Raises:
        MethodError: there is no such method, or this model cannot be explained by it.
    """
    if spec.kind not in KINDS:
        raise MethodError(f"method {spec.name!r}: kind {spec.kind!r} is none of {', '.join(KINDS)}")
    try:
        repeated = {"forward": forward} if forward is not None and spec.kind in REPEATING else {}
        explain = KINDS[spec.kind](model, example, checkpoints, **spec.options, **repeated)
        return tried(explain, example) if trial and spec.kind in LIBRARIES else explain
    except FxlrpError as error:
        raise MethodError(str(error)) from error
    except Exception as error:  # a library may raise anything where it cannot follow a model
        raise MethodError(f"{type(error).__name__}: {error}") from error
