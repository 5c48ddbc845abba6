"""Recurrent layers run step by step, every value kept that their relevance needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """The parameters of one layer in one direction; ``projection`` is what an LSTM with ``proj_size`` has besides."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None

    def gate(self, index: int, gates: int) -> Weights:
        """The rows of one gate."""
        parts = (None if value is None else value.chunk(gates)[index] for value in self[:4])
        return Weights(*parts)  # type: ignore[arg-type]

    @property
    def joint(self) -> tuple[Tensor, Tensor | None]:
        """Weights over (input, hidden) and bias, as those of one linear layer."""
        both = self.input_bias is not None and self.hidden_bias is not None
        bias = self.input_bias + self.hidden_bias if both else None  # type: ignore[operator]
        return torch.cat([self.input, self.hidden], dim=1), bias


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer is called with.

    Attributes:
        cell: what one step is: a key of :data:`CELLS`.
        x: the sequence, (batch, steps, features), or (steps, batch, features).
        states: the initial h, of an LSTM h and c, each (layers · directions, batch, features).
        weights: for each layer and direction W_ih and W_hh, if ``biases`` b_ih and b_hh, if it projects W_hr.
        biases, layers, both, batch_first: as ``nn.LSTM`` has them; ``both``: in both directions.
        lengths: (batch,), how many steps each item has, the rest being padding; ``None``: all.
    """

    cell: str
    x: Tensor
    states: list[Tensor]
    weights: list[Tensor]
    biases: bool
    layers: int
    both: bool
    batch_first: bool
    lengths: Tensor | None = None

    @property
    def sequence(self) -> Tensor:
        """The sequence, steps first."""
        return self.x.transpose(0, 1) if self.batch_first else self.x

    @property
    def directions(self) -> int:
        """How many directions each layer runs in."""
        return 2 if self.both else 1

    def weights_of(self, at: int) -> Weights:
        """The parameters of one layer in one direction, these being counted together."""
        each = len(self.weights) // (self.layers * self.directions)
        own = self.weights[at * each : (at + 1) * each]
        plain = 4 if self.biases else 2
        biases = own[2:4] if self.biases else [None, None]
        return Weights(*own[:2], *biases, *own[plain:])

    def active(self, t: int) -> Tensor | None:
        """Which items have a step ``t``, (batch, 1); ``None``: all."""
        return None if self.lengths is None else (t < self.lengths)[:, None]

    def begun(self, t: int, backwards: bool) -> Tensor | bool:
        """Which items had a step before the step ``t``."""
        if not backwards:
            return t > 0
        return t + 1 < len(self.sequence) if self.lengths is None else (t + 1 < self.lengths)[:, None]


class LstmStep(NamedTuple):
    """``c = kept + added``, and what is projected, ``o ⊙ tanh(c)``."""

    x: Tensor
    h: Tensor
    c: Tensor
    kept: Tensor
    added: Tensor
    squashed: Tensor


class GruStep(NamedTuple):
    """``h = kept + added``, and the two terms in the tanh of what is added."""

    x: Tensor
    h: Tensor
    kept: Tensor
    added: Tensor
    of_input: Tensor
    of_state: Tensor


class RnnStep(NamedTuple):
    """The input of a step, and the state before it."""

    x: Tensor
    h: Tensor


Step = LstmStep | GruStep | RnnStep
States = list[Tensor]


def lstm_step(x: Tensor, states: States, weights: Weights) -> tuple[Step, States]:
    """One step of an LSTM: what it computed, and the states after it."""
    h, c = states
    weight, bias = weights.joint
    i, f, g, o = F.linear(torch.cat([x, h], dim=1), weight, bias).chunk(4, dim=1)
    kept, added = f.sigmoid() * c, i.sigmoid() * g.tanh()
    after = kept + added
    squashed = o.sigmoid() * after.tanh()
    output = squashed if weights.projection is None else F.linear(squashed, weights.projection)
    return LstmStep(x, h, c, kept, added, squashed), [output, after]


def gru_step(x: Tensor, states: States, weights: Weights) -> tuple[Step, States]:
    """The same of a GRU."""
    (h,) = states
    of_input = F.linear(x, weights.input, weights.input_bias).chunk(3, dim=1)
    of_state = F.linear(h, weights.hidden, weights.hidden_bias).chunk(3, dim=1)
    r, z = ((a + b).sigmoid() for a, b in zip(of_input[:2], of_state[:2], strict=True))
    reset = r * of_state[2]
    kept, added = z * h, (1 - z) * (of_input[2] + reset).tanh()
    return GruStep(x, h, kept, added, of_input[2], reset), [kept + added]


def rnn_step(
    activation: Callable[[Tensor], Tensor], x: Tensor, states: States, weights: Weights
) -> tuple[Step, States]:
    """The same of a plain recurrent layer."""
    (h,) = states
    return RnnStep(x, h), [activation(F.linear(torch.cat([x, h], dim=1), *weights.joint))]


CELLS: Mapping[str, Callable[[Tensor, States, Weights], tuple[Step, States]]] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": partial(rnn_step, torch.tanh),
    "rnn_relu": partial(rnn_step, torch.relu),
}
"""What one step does, by the name of ATen's operation."""


class Run(NamedTuple):
    """What was run: of each layer and direction what each step computed, in the order of time, and the results.

    ``outputs`` are the sequence as ``nn.LSTM`` gives it and the final states.
    """

    steps: list[list[Any]]
    outputs: list[Tensor]


def run(call: Recurrence) -> Run:
    """Run every layer and direction."""
    runs = []
    final = []
    inputs = list(call.sequence.unbind(0))
    for layer in range(call.layers):
        outputs = []
        for direction in range(call.directions):
            at = layer * call.directions + direction
            steps, hidden, states = _run(call, inputs, at, backwards=direction == 1)
            runs.append(steps)
            outputs.append(hidden)
            final.append(states)
        inputs = [torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)]
    sequence = torch.stack(inputs, dim=1 if call.batch_first else 0)
    return Run(runs, [sequence, *(torch.stack(states) for states in zip(*final, strict=True))])


def _run(
    call: Recurrence, inputs: list[Tensor], at: int, *, backwards: bool
) -> tuple[list[Step], list[Tensor], States]:
    """One layer in one direction; at steps that an item does not have its states stay, and its output is zero."""
    cell, weights, states = CELLS[call.cell], call.weights_of(at), [state[at] for state in call.states]
    steps: dict[int, Step] = {}
    hidden: dict[int, Tensor] = {}
    for t in reversed(range(len(inputs))) if backwards else range(len(inputs)):
        before, active = states, call.active(t)
        steps[t], states = cell(inputs[t], states, weights)
        hidden[t] = states[0]
        if active is not None:
            hidden[t] = hidden[t] * active
            states = [torch.where(active, new, old) for new, old in zip(states, before, strict=True)]
    return [steps[t] for t in range(len(inputs))], [hidden[t] for t in range(len(inputs))], states


def row_sums(amount: Tensor | list[Tensor]) -> Tensor:
    """The sum over features, one number per item: of (batch, features), or of several such."""
    parts = amount if isinstance(amount, list) else [amount]
    return torch.stack([part.sum(dim=1) for part in parts]).sum(dim=0)


OF_LENGTHS = (
    "recurrence(Tensor input, Tensor lengths, Tensor[] hx, Tensor[] params, str cell, bool has_biases, int num_layers, "
    "bool bidirectional) -> Tensor[]"
)
"""The schema of a recurrent layer over padded sequences of several lengths, (batch, steps, features).

ATen has one over packed sequences alone, whose items have no axis of their own.
"""


def of_lengths(
    input: Tensor, lengths: Tensor, hx: list[Tensor], params: list[Tensor], cell: str, has_biases: bool,
    num_layers: int, bidirectional: bool,
) -> list[Tensor]:
    """The operation of :data:`OF_LENGTHS`: the sequence and the final states."""
    lengths = lengths.to(input.device)
    return run(Recurrence(cell, input, hx, params, has_biases, num_layers, bidirectional, True, lengths)).outputs


_LIBRARY: Any = torch.library.Library("fxlrp", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(OF_LENGTHS)
_LIBRARY.impl("recurrence", of_lengths, "CompositeImplicitAutograd")
