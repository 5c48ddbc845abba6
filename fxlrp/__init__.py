"""fxlrp: a compiler for Layer-wise Relevance Propagation.

explainer = fxlrp.compile(model.eval())
explanation = explainer(images)
maps = fxlrp.heatmap(explanation.relevance)
"""

from fxlrp import errors, presets, rules, starts, vocabulary
from fxlrp.compiler import compile
from fxlrp.explainer import Explainer
from fxlrp.explanation import Explanation
from fxlrp.exports import SavedExplainer, load
from fxlrp.heatmap import heatmap, quantize_heat, stage_map
from fxlrp.ledger import Ledger
from fxlrp.passes.joins import Join, JoinKind
from fxlrp.presets import PRESETS, Preset
from fxlrp.quantus import quantus_explain
from fxlrp.smoothgrad import smooth
from fxlrp.text import token_relevance

__version__ = "0.1.0"

__all__ = [
    "PRESETS", "Explainer", "Explanation", "Join", "JoinKind", "Ledger", "Preset", "SavedExplainer", "compile",
    "errors", "heatmap", "load", "presets", "quantize_heat", "quantus_explain", "rules", "smooth", "stage_map",
    "starts", "token_relevance", "vocabulary",
]  # fmt: skip
