"""fxlrp: a compiler for Layer-wise Relevance Propagation.

explainer = fxlrp.compile(model.eval())
explanation = explainer(images)
maps = fxlrp.heatmap(explanation.relevance)

Names are imported when they are first used, so that the command line can answer without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fxlrp.common.module_alias import ModuleAlias
from fxlrp.common.version import __version__

if TYPE_CHECKING:
    from fxlrp import presets, rules, vocabulary
    from fxlrp.common import errors
    from fxlrp.compiler import capture, compile, quantus_explain
    from fxlrp.explainer import Explainer
    from fxlrp.exports import SavedExplainer, load
    from fxlrp.interop.smoothgrad import smooth
    from fxlrp.language import Inside, LanguageModel, Story, language_model
    from fxlrp.maps.heatmap import heatmap, patch_map, quantize_heat, stage_map
    from fxlrp.maps.regions import region_map
    from fxlrp.maps.tokens import token_relevance
    from fxlrp.passes.joins import Join, JoinKind
    from fxlrp.presets import PRESETS, Preset
    from fxlrp.results.explanation import Explanation
    from fxlrp.results.ledger import Ledger
    from fxlrp.rules import starts
    from fxlrp.runtime.captures import CapturedModel

__all__ = [
    "PRESETS", "CapturedModel", "Explainer", "Explanation", "Inside", "Join", "JoinKind", "LanguageModel", "Ledger",
    "Preset", "SavedExplainer", "Story", "__version__", "capture", "compile", "errors", "heatmap", "language_model",
    "load", "patch_map", "presets", "quantize_heat", "quantus_explain", "region_map", "rules", "smooth", "stage_map",
    "starts", "token_relevance", "vocabulary",
]  # fmt: skip

_HOMES = {
    "compiler": ("CapturedModel", "capture", "compile", "quantus_explain"),
    "explainer": ("Explainer",),
    "exports": ("SavedExplainer", "load"),
    "interop.smoothgrad": ("smooth",),
    "language": ("Inside", "LanguageModel", "Story", "language_model"),
    "maps.heatmap": ("heatmap", "patch_map", "quantize_heat", "stage_map"),
    "maps.regions": ("region_map",),
    "maps.tokens": ("token_relevance",),
    "passes.joins": ("Join", "JoinKind"),
    "presets": ("PRESETS", "Preset"),
    "results.explanation": ("Explanation",),
    "results.ledger": ("Ledger",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

_ALIASES = {
    alias: ModuleAlias(f"{__name__}.{alias}", f"{__name__}.{home}")
    for alias, home in {
        "checkpoints": "loading.checkpoints",
        "draw": "views.draw",
        "errors": "common.errors",
        "explorer": "views.explorer",
        "extras": "common.extras",
        "files": "common.atomic_files",
        "geometry": "loading.geometry",
        "heatmap": "maps.heatmap",
        "images": "loading.images",
        "ledger": "results.ledger",
        "models": "loading.models",
        "profile": "results.profile",
        "render": "maps.rendering",
        "report": "views.report",
        "rules.join": "rules.split",
        "rules.primitives": "steps.primitives",
        "starts": "rules.starts",
        "text": "maps.tokens",
    }.items()
}
"""Paths that the documentation names, and the rooms where these modules are. A stub of each, such as
``render.pyi``, tells type checkers the same."""


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    elif name in _ALIASES:
        value = _ALIASES[name].resolve()
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(alias for alias in _ALIASES if "." not in alias)})
