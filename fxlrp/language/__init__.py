"""Language models: which part of the prompt, for each token of an answer."""

from fxlrp.language.inside import Inside
from fxlrp.language.lm import LanguageModel, language_model
from fxlrp.language.story import Story

__all__ = ["Inside", "LanguageModel", "Story", "language_model"]
