"""Recurrent layers, as torch.export shows them: one operation each."""

from __future__ import annotations

from typing import Any

import torch

from fxlrp.steps.lstm import Lstm
from fxlrp.vocabulary.channel_moves import last
from fxlrp.vocabulary.operation import Arguments, Kind, Operation, Unsupported

aten = torch.ops.aten


def lower_lstm(input: Any, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
               bidirectional: bool, batch_first: bool) -> Any:
    each = (4 if has_biases else 2) * num_layers * (2 if bidirectional else 1)
    if len(params) != each:
        raise Unsupported("an LSTM with projections", final=True)
    return aten.lstm.input(
        input, list(hx), list(params), has_biases, num_layers, 0.0, False, bidirectional, batch_first
    )


def bind_lstm(a: Arguments, operand: str) -> Lstm:
    form = (a["has_biases"], a["num_layers"], a["bidirectional"], a["batch_first"])
    return Lstm(a["input"], list(a["hx"]), list(a["params"]), *form)


OPERATIONS = [
    Operation(
        aten.lstm.input, Kind.RECURRENT, operands=("input",), bind=bind_lstm, outputs_many=True, parametric=True,
        channels=last,
        aten={aten.lstm.input: lower_lstm},
    ),
]
