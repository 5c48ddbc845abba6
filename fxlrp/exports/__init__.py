"""Explanations that go where the model's Python code does not: files, ONNX, compiled packages."""

from fxlrp.exports.reading import load
from fxlrp.exports.saved import SavedExplainer
from fxlrp.exports.signature import PREDICTED, Signature

__all__ = ["PREDICTED", "SavedExplainer", "Signature", "load"]
