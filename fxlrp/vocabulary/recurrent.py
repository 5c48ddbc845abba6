"""Recurrent layers: one operation each. A cell is a layer over a sequence of one step.

A loop over a cell becomes one operation later on, :mod:`fxlrp.passes.reroll`.
"""

from __future__ import annotations

from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import nn

from fxlrp.steps import batch_axis
from fxlrp.steps.recurrence import CELLS, Recurrence
from fxlrp.vocabulary.channel_moves import last
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Unsupported

aten = torch.ops.aten


def bind(cell: str, a: Arguments, operand: str) -> Recurrence:
    states = list(a["hx"]) if cell == "lstm" else [a["hx"]]
    form = (a["has_biases"], a["num_layers"], a["bidirectional"], a["batch_first"])
    return Recurrence(cell, a["input"], states, list(a["params"]), *form)


def bind_of_lengths(a: Arguments, operand: str) -> Recurrence:
    form = (a["has_biases"], a["num_layers"], a["bidirectional"], True)
    lengths = a["lengths"].to(a["input"].device)
    return Recurrence(a["cell"], a["input"], list(a["hx"]), list(a["params"]), *form, lengths)


def batch_of_sequence(position: Any, a: Arguments) -> Any:
    """Where the sequence has it; a state alone does not tell."""
    if a["operand"] == "input":
        return position
    return batch_axis.Position(0 if a.get("batch_first", True) else 1)


def layer(cell: str) -> Operation:
    target = getattr(aten, cell).input

    def lower(input: Any, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
              bidirectional: bool, batch_first: bool) -> Any:
        states = list(hx) if cell == "lstm" else hx
        return target(input, states, list(params), has_biases, num_layers, 0.0, False, bidirectional, batch_first)

    return Operation(
        target, Kind.RECURRENT, operands=("input", "hx"), bind=partial(bind, cell), outputs_many=True, parametric=True,
        batch=batch_of_sequence, channels=last, lower=lower,
        functions=(getattr(torch, cell),), aten={target: lower},
    )


def one_step(cell: str) -> Composed:
    target = getattr(aten, cell).input

    def lower(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        states = [aten.unsqueeze.default(state, 0) for state in (hx if cell == "lstm" else [hx])]
        params = [w_ih, w_hh] if b_ih is None else [w_ih, w_hh, b_ih, b_hh]
        sequence = aten.unsqueeze.default(input, 1)
        called = target(
            sequence, states if cell == "lstm" else states[0], params, b_ih is not None, 1, 0.0, False, False, True
        )
        after = tuple(aten.select.int(getitem(called, i + 1), 0, 0) for i in range(len(states)))
        return after if cell == "lstm" else after[0]

    name = f"{cell}_cell"
    return Composed(lower, (getattr(torch, name),), (), {getattr(aten, name).default: None})


LAYERS, STEPS = {cell: layer(cell) for cell in CELLS}, {cell: one_step(cell) for cell in CELLS}


def cell_of(module: Any) -> str:
    """What one step of a layer or of a cell of ``torch.nn`` is."""
    name = getattr(module, "mode", None) or module._get_name().removesuffix("Cell")
    return name.lower() if name != "RNN" else f"rnn_{module.nonlinearity}"


def lower_layer(module: Any, input: Any, hx: Any = None) -> Any:
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` of a batch of sequences."""
    _check_plain(module)
    cell = cell_of(module)
    if hx is None:
        places = module.num_layers * (2 if module.bidirectional else 1)
        batch = input.shape[0 if module.batch_first else 1]
        widths = [module.proj_size or module.hidden_size] + [module.hidden_size] * (cell == "lstm")
        states = [input.new_zeros((places, batch, width)) for width in widths]
        hx = states if cell == "lstm" else states[0]
    params = [getattr(module, name) for names in module._all_weights for name in names]
    form = (module.bias, module.num_layers, 0.0, False, module.bidirectional, module.batch_first)
    called = LAYERS[cell].call(input, hx, params, *form)
    return (called[0], (called[1], called[2])) if cell == "lstm" else (called[0], called[1])


def lower_cell(module: Any, input: Any, hx: Any = None) -> Any:
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` of a batch."""
    _check_plain(module)
    cell = cell_of(module)
    if hx is None:
        zeros = input.new_zeros((input.shape[0], module.hidden_size))
        hx = (zeros, zeros) if cell == "lstm" else zeros
    biases = [module.bias_ih, module.bias_hh] if module.bias else []
    return STEPS[cell].lower(input, hx, module.weight_ih, module.weight_hh, *biases)


def _check_plain(module: Any) -> None:
    if hasattr(module, "parametrizations"):
        raise Unsupported("a recurrent layer whose weights are computed")  # torch.export follows how they are


OF_LENGTHS = Operation(
    torch.ops.fxlrp.recurrence.default, Kind.RECURRENT, operands=("input", "hx"), bind=bind_of_lengths,
    outputs_many=True, parametric=True, batch=batch_of_sequence, channels=last,
)

OPERATIONS = [*LAYERS.values(), OF_LENGTHS]
COMPOSED = [*STEPS.values()]
MODULES = {
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), lower_layer),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), lower_cell),
}
