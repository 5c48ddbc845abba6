"""Explanations that go where the model's Python code does not: files, ONNX, compiled packages."""

from fxlrp.exports.portable import PREDICTED, Signature
from fxlrp.exports.saved import SavedExplainer, load

__all__ = ["PREDICTED", "SavedExplainer", "Signature", "load"]
