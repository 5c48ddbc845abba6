"""Evaluation on texts: does relevance name the tokens that matter to what a model says?"""

from fxlrp.evaluation.tokens.subject import Passage, TokenModel

__all__ = ["Passage", "TokenModel"]
