"""Relevance by fxlrp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.compiler import compile
from fxlrp.errors import MethodError
from fxlrp.evaluation.conservation import INPUT, arrived
from fxlrp.evaluation.insertion import blurred
from fxlrp.evaluation.methods.base import Attribution, Explain
from fxlrp.heatmap import heatmap
from fxlrp.passes.optimize import DEFAULT, PACK_WEIGHTS
from fxlrp.rule_text import read_rules


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
        maps = torch.stack([_enlarged(heatmap(parts[stage]), inputs) for stage in stages]).mean(dim=0)
        if smooth:
            maps = blurred(maps[:, None], smooth * min(inputs.shape[-2:]) / 224)[:, 0]
        sums = arrived(explanation)
        return Attribution(maps, explanation.start, {name: sums[name] for name in (INPUT, *checkpoints)})

    return explain


def _enlarged(maps: Tensor, inputs: Tensor) -> Tensor:
    """The maps in the size of the inputs, relevance of a place spread over it."""
    if maps.shape[-2:] == inputs.shape[-2:]:
        return maps
    share = maps.shape[-2:].numel() / inputs.shape[-2:].numel()
    return share * F.interpolate(maps[:, None], inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
