"""Tensor functions that rules emit; they know neither rules nor graphs."""

from fxlrp.steps import torch_functions  # noqa: F401, what it declares is known as soon as any step is
