"""Presets: a rule for every kind of operation, under one name."""

from fxlrp.common.errors import RuleError
from fxlrp.common.suggestions import did_you_mean
from fxlrp.presets.attention import ATTNLRP, CP_LRP
from fxlrp.presets.composites import (
    deconvnet,
    epsilon,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    guided_backprop,
)
from fxlrp.presets.conserving import CONSERVING, CONSERVING_GAMMA, OTSUKI2024, OTSUKI2024_MIXTURE
from fxlrp.presets.evidence import EVIDENCE
from fxlrp.presets.preset import Preset

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        CONSERVING, CONSERVING_GAMMA, OTSUKI2024, OTSUKI2024_MIXTURE, EVIDENCE, ATTNLRP, CP_LRP, epsilon(),
        epsilon_plus(), epsilon_plus_flat(), epsilon_gamma_box(), epsilon_alpha2_beta1(), epsilon_alpha2_beta1_flat(),
        excitation_backprop(), guided_backprop(), deconvnet(),
    )
}  # fmt: skip
"""The presets that ``compile(preset=…)`` knows by name."""


def preset_named(preset: str | Preset) -> Preset:
    """The preset of this name, or the preset itself; dashes and underscores, upper and lower case are alike.

    Raises:
        RuleError: there is none of this name.
    """
    if isinstance(preset, Preset):
        return preset
    name = preset.lower().replace("-", "_") if isinstance(preset, str) else preset
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(str(name), PRESETS)
        raise RuleError(f"preset={preset!r}: choose one of {', '.join(map(repr, PRESETS))}, or give a Preset{hint}")
    return PRESETS[name]


__all__ = [
    "PRESETS", "Preset", "deconvnet", "epsilon", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box", "epsilon_plus", "epsilon_plus_flat", "excitation_backprop", "guided_backprop", "preset_named",
]  # fmt: skip
