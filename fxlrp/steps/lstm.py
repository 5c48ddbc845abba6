"""An LSTM run step by step, every value kept that its relevance needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lstm:
    """What an LSTM is called with.

    Attributes:
        x: the sequence, (batch, steps, features), or (steps, batch, features).
        states: the initial h and c, each (layers · directions, batch, hidden).
        weights: for each layer and direction W_ih and W_hh, then, if ``biases``, b_ih and b_hh.
        biases, layers, both, batch_first: as ``nn.LSTM`` has them; ``both``: in both directions.
    """

    x: Tensor
    states: list[Tensor]
    weights: list[Tensor]
    biases: bool
    layers: int
    both: bool
    batch_first: bool


class LstmStep(NamedTuple):
    """What one step computed: its input, the states before it, its gates."""

    x: Tensor
    h: Tensor
    c: Tensor
    kept: Tensor
    added: Tensor


def row_sums(amount: Tensor | list[Tensor]) -> Tensor:
    """The sum over features, one number per item: of (batch, features), or of several such."""
    parts = amount if isinstance(amount, list) else [amount]
    return torch.stack([part.sum(dim=1) for part in parts]).sum(dim=0)


def _parameters(lstm: Lstm, at: int) -> list[Tensor]:
    each = 4 if lstm.biases else 2
    return lstm.weights[at * each : (at + 1) * each]


def candidate_map(lstm: Lstm, at: int) -> tuple[Tensor, Tensor | None]:
    """Weights over (input, hidden) and bias of the candidate g, the third of the four gates."""
    w_ih, w_hh, *biases = (parameter.chunk(4)[2] for parameter in _parameters(lstm, at))
    return torch.cat([w_ih, w_hh], dim=1), biases[0] + biases[1] if biases else None


def forward_steps(lstm: Lstm, x: Tensor) -> list[list[LstmStep]]:
    """Every layer and direction run step by step; steps are in the order of time."""
    runs = []
    inputs = list(x.unbind(0))
    directions = 2 if lstm.both else 1
    for layer in range(lstm.layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            steps, hidden = _run(inputs, lstm.states[0][at], lstm.states[1][at], _parameters(lstm, at), direction == 1)
            runs.append(steps)
            outputs.append(hidden)
        inputs = [torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)]
    return runs


def _run(
    inputs: list[Tensor], h: Tensor, c: Tensor, parameters: list[Tensor], backwards: bool
) -> tuple[list[LstmStep], list[Tensor]]:
    w_ih, w_hh, *biases = parameters
    steps: dict[int, LstmStep] = {}
    hidden: dict[int, Tensor] = {}
    for t in reversed(range(len(inputs))) if backwards else range(len(inputs)):
        x = inputs[t]
        gates = x @ w_ih.T + h @ w_hh.T + (biases[0] + biases[1] if biases else 0)
        i, f, g, o = gates.chunk(4, dim=1)
        kept, added = f.sigmoid() * c, i.sigmoid() * g.tanh()
        steps[t] = LstmStep(x, h, c, kept, added)
        c = kept + added
        h = o.sigmoid() * c.tanh()
        hidden[t] = h
    return [steps[t] for t in range(len(inputs))], [hidden[t] for t in range(len(inputs))]
