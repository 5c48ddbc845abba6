"""Relevance by fxlrp."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fxlrp.common.errors import MethodError, RuleError
from fxlrp.compiler import compile
from fxlrp.evaluation.methods.base import Attribution, Explain, over_regions
from fxlrp.evaluation.relevance_sums import INPUT, arrived
from fxlrp.loading.models import imported_result
from fxlrp.loading.rule_text import read_rules
from fxlrp.maps.heatmap import stage_map
from fxlrp.passes.optimize import NAMES, PACK_WEIGHTS
from fxlrp.presets.preset import Preset

_DECIDED = (
    "model", "output", "checkpoints", "example_inputs", "backend", "differentiable", "optimize", "verify", "batch",
    "memory",
)  # fmt: skip
"""The parameters of ``compile`` that an evaluation decides itself; a method may give all others."""


def compile_options() -> dict[str, inspect.Parameter]:
    """The options of ``compile`` that a method may give, by name."""
    parameters = inspect.signature(compile, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _DECIDED}


def relevance(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, rules: Mapping[str, str] | None = None,
    at: str | Sequence[str] = INPUT, smooth: float = 0.0, regions: bool = False, **options: Any,
) -> Explain:  # fmt: skip
    """Relevance by a preset of fxlrp.

    Args:
        model: is explained.
        example: what it takes, (1, channels, height, width).
        checkpoints: modules at whose input relevance is added up.
        rules: rules as texts by pattern, as the command line takes them.
        at: the map is that at the input of this module, enlarged, or the mean of those at several; ``"input"`` is the
            input of the network.
        smooth: standard deviation of a Gaussian over the map, in pixels for an image of 224 pixels.
        regions: whether maps are summed over the segments of the image.
        **options: other options of :func:`fxlrp.compile`.
    """
    stages = [at] if isinstance(at, str) else list(at)
    if not stages:
        raise MethodError("at names no module")
    wanted = tuple(dict.fromkeys((*checkpoints, *(stage for stage in stages if stage != INPUT))))
    explainer = compile(
        model, rules=rules_of(rules), checkpoints=wanted, example_inputs=example, **preset_of(options),
        # Weights are packed from the second call on, which changes the last digits: the first image would differ.
        optimize=tuple(name for name in NAMES if name != PACK_WEIGHTS),
    )  # fmt: skip

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        explanation = explainer(inputs, target=targets)
        by_stage = {INPUT: explanation.relevance, **explanation.checkpoints}
        size = inputs.shape[-2:]
        maps = stage_map([by_stage[stage] for stage in stages], *size, sigma=smooth * min(size) / 224)
        sums = arrived(explanation)
        return Attribution(maps, explanation.start, {name: sums[name] for name in (INPUT, *checkpoints)})

    return over_regions(explain) if regions else explain


def check_options(options: Mapping[str, Any]) -> None:
    """Raise where options fit no model at all: a preset, split, start or rule that there is not.

    Raises:
        RuleError, StartError, WeightsError: as :func:`fxlrp.compile`, which compiles a model without rules of its own
            here, and as :func:`preset_of`.
    """
    rules_of(options.get("rules"))
    accepted = compile_options().keys() - {"rules"}
    given = {name: value for name, value in preset_of(options).items() if name in accepted}
    compile(nn.Identity().eval(), **given)


def rules_of(rules: Mapping[str, str] | None) -> dict[str, Any]:
    """Rules by pattern, from their texts.

    Raises:
        RuleError: a text is no rule.
    """
    return dict(read_rules([f"{pattern}={rule}" for pattern, rule in (rules or {}).items()]))


def preset_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the preset in place of ``"python:package.module:callable"``, which returns it.

    Raises:
        RuleError: it returns something else.
        WeightsError: there is no such function, or it fails.
    """
    source, _, name = str(options.get("preset", "")).partition(":")
    if source != "python":
        return dict(options)
    preset = imported_result(name)
    if not isinstance(preset, Preset):
        raise RuleError(f"preset: {name} returned {type(preset).__name__}, not a Preset")
    return {**options, "preset": preset}
