"""Relevance by fxlrp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fxlrp.common.errors import MethodError
from fxlrp.compiler import compile
from fxlrp.evaluation.conservation import INPUT, arrived
from fxlrp.evaluation.methods.base import Attribution, Explain
from fxlrp.loading.rule_text import read_rules
from fxlrp.maps.heatmap import stage_map
from fxlrp.passes.optimize import DEFAULT, PACK_WEIGHTS


def relevance(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, preset: str = "conserving",
    rules: Mapping[str, str] | None = None, split: str | None = None, identity_skips: bool = True,
    start: str = "probability", at: str | Sequence[str] = INPUT, smooth: float = 0.0,
) -> Explain:  # fmt: skip
    """Relevance by a preset of fxlrp.

    ``rules`` are texts, as the command line takes them; ``at`` shows the map at the input of a module, enlarged, or the
    mean of the maps at several, of which ``"input"`` is the network's own; ``smooth`` is the σ in pixels of a Gaussian
    over the map, for an image of 224.
    """
    stages = [at] if isinstance(at, str) else list(at)
    if not stages:
        raise MethodError("at names no module")
    wanted = tuple(dict.fromkeys((*checkpoints, *(stage for stage in stages if stage != INPUT))))
    explainer = compile(
        model, preset, rules=read_rules([f"{k}={v}" for k, v in (rules or {}).items()]), split=split,
        identity_skips=identity_skips, start=start, checkpoints=wanted, example_inputs=example,
        # Weights are packed from the second call on, which changes the last digits: the first image would differ.
        optimize=tuple(name for name in DEFAULT if name != PACK_WEIGHTS),
    )  # fmt: skip

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        explanation = explainer(inputs, target=targets)
        parts = {INPUT: explanation.relevance, **explanation.checkpoints}
        size = inputs.shape[-2:]
        maps = stage_map([parts[stage] for stage in stages], *size, sigma=smooth * min(size) / 224)
        sums = arrived(explanation)
        return Attribution(maps, explanation.start, {name: sums[name] for name in (INPUT, *checkpoints)})

    return explain
