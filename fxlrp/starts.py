"""Starts: the relevance that enters at the output, for ``compile(start=…)``."""

from fxlrp.rules.start import STARTS, Start, against

__all__ = ["STARTS", "Start", "against"]
