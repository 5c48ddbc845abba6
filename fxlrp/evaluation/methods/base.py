"""What a method of explanation is, once it is ready: a function from inputs and classes to maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fxlrp.common.errors import MethodError
from fxlrp.maps.regions import region_map


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


def over_regions(explain: Explain) -> Explain:
    """The same method, its maps summed over the segments of the images; ties within one are broken by the map."""

    def explained(inputs: Tensor, targets: Tensor) -> Attribution:
        found = explain(inputs, targets)
        regions = region_map(found.heatmaps, inputs)
        # What a pixel has beside its region only orders the pixels of that region.
        within = found.heatmaps * (1e-6 * regions.abs().amax() / found.heatmaps.abs().amax().clamp(min=1e-30))
        return replace(found, heatmaps=regions + within)

    return explained


def own_copy(model: nn.Module) -> nn.Module:
    """A copy for a library that hooks into the model, or that needs activations out of place."""
    own = copy.deepcopy(model)
    for module in own.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return own


def tried(explain: Explain, example: Tensor) -> Explain:
    """``explain``, after it has explained something: what a library cannot do shows when it runs."""
    attribution = explain(example, torch.zeros(len(example), dtype=torch.long, device=example.device))
    if attribution.heatmaps.shape != (len(example), *example.shape[-2:]):
        raise MethodError(f"it gives maps of shape {tuple(attribution.heatmaps.shape)}")
    return explain
