"""absLRP (Vukadin et al., ACM TIST 2024) as a method of an evaluation: |x||w| in all layers, one class against all.

In a configuration: ``kind = "python"``, ``function = "examples.evaluation.abs_lrp:abs_lrp"``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import fxlrp
from fxlrp.rules import Absolute


def abs_lrp(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """From inputs and classes to maps: relevance of the class less that of the others, each by magnitudes."""
    preset = fxlrp.Preset("absLRP", linear=Absolute(), rules=fxlrp.PRESETS["conserving"].rules)
    explainer = fxlrp.compile(model, preset, start="contrastive")
    return lambda inputs, targets: explainer.heatmap(inputs, target=targets)
