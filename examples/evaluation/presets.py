"""Presets that were measured beside ``evidence``: ``preset = "python:examples.evaluation.presets:…"``."""

from dataclasses import replace

from fxlrp.presets import PRESETS, Preset
from fxlrp.rules import GammaSplit, SignedSplit

_EVIDENCE = PRESETS["evidence"]
assert _EVIDENCE.attention is not None
_IMAGES = _EVIDENCE.attention
assert _IMAGES.tokens is not None
_TEXTS = _IMAGES.tokens


def _for_texts(name: str, rules: Preset) -> Preset:
    """``evidence`` with other rules where tokens are looked up."""
    return replace(_EVIDENCE, name=name, attention=replace(_IMAGES, tokens=rules))


def attention_constant() -> Preset:
    """Attention weights held constant where tokens are looked up, as for images."""
    return _for_texts("attention_constant", replace(_TEXTS, product=_IMAGES.product, softmax=_IMAGES.softmax))


def signed_split() -> Preset:
    """The signed split where tokens are looked up."""
    return _for_texts("signed_split", replace(_TEXTS, split=SignedSplit(1e-6)))


def gamma_split() -> Preset:
    """A γ split of 0.1 where tokens are looked up."""
    return _for_texts("gamma_split", replace(_TEXTS, split=GammaSplit(0.1)))


def rules_for_images() -> Preset:
    """Where tokens are looked up, the rules for images."""
    return replace(_EVIDENCE, name="rules_for_images", attention=replace(_IMAGES, tokens=None))


def gamma_everywhere() -> Preset:
    """For images, γ also in the layers before activations."""
    return replace(_EVIDENCE, name="gamma_everywhere", attention=replace(_IMAGES, activated=None))

