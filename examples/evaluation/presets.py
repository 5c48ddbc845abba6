"""Presets that were measured beside ``evidence``: ``preset = "python:examples.evaluation.presets:…"``."""

from dataclasses import replace
from typing import Any

from fxlrp.presets import PRESETS, Preset
from fxlrp.rules import Absolute, GammaSplit, SignedSplit

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



def _absolute(name: str, **fields: Any) -> Preset:
    """``evidence`` for convolutional networks with |x||w| in place of some of its rules."""
    return replace(_EVIDENCE, name=name, **fields)


def absolute_below_classifier() -> Preset:
    """|x||w| in all layers below the classifier."""
    return _absolute("absolute_below_classifier", linear=Absolute(), coarse=None)


def absolute_from_stride_32() -> Preset:
    """|x||w| from stride 32 on, z⁺ below."""
    return _absolute("absolute_from_stride_32", coarse=(32, Absolute()))


def absolute_from_stride_16() -> Preset:
    """|x||w| from stride 16 on, z⁺ below."""
    return _absolute("absolute_from_stride_16", coarse=(16, Absolute()))


def absolute_up_to_stride_16() -> Preset:
    """|x||w| up to stride 16, γ = 1 from stride 32 on."""
    return _absolute("absolute_up_to_stride_16", linear=Absolute())


def absolute_everywhere() -> Preset:
    """|x||w| in all layers, the classifier's too."""
    return _absolute("absolute_everywhere", linear=Absolute(), coarse=None, classifier=None)
