"""Recurrent layers while a model is read."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import fx, nn


def returned(module: nn.Module, value: Any) -> Any:
    """What a call of a module gave, as the tuples that a recurrent layer returns: code asks whether it got some."""
    if not (isinstance(value, fx.Proxy) and isinstance(module, nn.RNNBase | nn.LSTMCell)):
        return value
    first, last = getitem(value, 0), getitem(value, 1)
    return first, ((getitem(last, 0), getitem(last, 1)) if isinstance(module, nn.LSTM) else last)
