"""Explanations that go where the model's Python code does not: files, ONNX, compiled packages."""

from fxlrp.exports.portable import PREDICTED, Signature
from fxlrp.exports.reading import load
from fxlrp.exports.saved import SavedExplainer

__all__ = ["PREDICTED", "SavedExplainer", "Signature", "load"]
