"""Evaluation on texts, series and tables: does relevance name the places that matter to what a model says?"""

from fxlrp.evaluation.tokens.subject import Passage, TokenModel

__all__ = ["Passage", "TokenModel"]
