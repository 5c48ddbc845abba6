"""fxlrp: a compiler for Layer-wise Relevance Propagation.

explainer = fxlrp.compile(model.eval())
explanation = explainer(images)
maps = fxlrp.heatmap(explanation.relevance)
"""

from fxlrp import errors, rules, starts, vocabulary
from fxlrp.compiler import compile
from fxlrp.explainer import Explainer, Explanation
from fxlrp.heatmap import heatmap, quantize_heat
from fxlrp.ledger import Ledger
from fxlrp.passes.joins import Join
from fxlrp.presets import PRESETS, Preset
from fxlrp.text import token_relevance

__version__ = "0.1.0"

__all__ = [
    "PRESETS", "Explainer", "Explanation", "Join", "Ledger", "Preset",
    "compile", "errors", "heatmap", "quantize_heat", "rules", "starts", "token_relevance", "vocabulary",
]  # fmt: skip
