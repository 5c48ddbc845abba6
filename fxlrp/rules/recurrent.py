"""Relevance through recurrent layers, step by step, their gates held constant."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.linear import LinearRule, ZPlus
from fxlrp.rules.rule import BIAS, CONSTANT, STABILIZER, Ask, Rule, Shares
from fxlrp.rules.split import RatioSplit, SplitRule
from fxlrp.steps.declaration import along, primitive
from fxlrp.steps.dense import Dense
from fxlrp.steps.recurrence import GruStep, LstmStep, Recurrence, RnnStep, Weights, row_sums, run
from fxlrp.vocabulary.operation import Kind

_KEPT = (CONSTANT, STABILIZER, BIAS)

Supports = list[Tensor | None]
"""For each state before a step ones where it counts, (batch, 1), and zeros where it is a start from zero; ``None``: it
carries signal."""


class Recurrent(Rule):
    """Through an LSTM, GRU or RNN to its sequence and its initial states; gates take nothing (Arras et al., 2017).

    LSTM: at ``c = f ⊙ c' + i ⊙ g`` relevance splits by ``split``; at ``g = tanh(W x + U h' + b)`` it goes on by
    ``linear``. GRU: the same at ``h = z ⊙ h' + (1 − z) ⊙ n``; at ``n = tanh((W x + b) + r ⊙ (U h' + b'))`` it splits
    once more, and goes on in each term by ``linear``. RNN: by ``linear``. Initial states that carry no signal and are
    not zero absorb what they get.

    Args:
        linear: the rule of the linear maps.
        split: the rule of the sums.
    """

    kinds = (Kind.RECURRENT,)

    def __init__(self, linear: LinearRule | None = None, split: SplitRule | None = None) -> None:
        self.linear = ZPlus() if linear is None else linear
        self.split = RatioSplit() if split is None else split

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.linear.keeps_sign and self.split.keeps_sign

    def __call__(
        self, relevance: list[tuple[int, Tensor]], call: Recurrence, carries: list[bool] | None = None
    ) -> Shares:
        """Share relevance of the outputs out over the sequence and the states.

        Args:
            relevance: pairs of an output's index (0: the sequence, then the final states) and its relevance.
            call: the call.
            carries: whether the sequence and each initial state carry signal, and so receive; ``None``: the sequence.
        """

        def recurrent_relevance(parts: Any, carries: Any, *form: Any) -> list[Tensor]:
            return self._back(parts, carries, Recurrence(*form))

        def recurrent_part(parts: Any, carries: Any, *form: Any, whole: Any) -> Any:
            return self._back_along(parts, whole[0], carries, Recurrence(*form))

        form = tuple(getattr(call, each.name) for each in fields(call))
        back = primitive(recurrent_relevance)
        along(back)(recurrent_part)
        receives = [True] + [False] * len(call.states) if carries is None else carries
        results = back(relevance, receives, *form)
        operands = [results[i] for i, receiving in enumerate(receives) if receiving]
        first = len(receives)
        return Shares(
            operands, {reason: partial(results.__getitem__, first + i) for i, reason in enumerate(_KEPT)}  # type: ignore[arg-type]
        )

    def at(self, relevance: Any, ask: Ask) -> Shares:
        return self(relevance, ask("bound"), ask("carries"))

    def _back_along(
        self, parts: list[tuple[int, Tensor]], whole: list[tuple[int, Tensor]], carries: list[bool], call: Recurrence
    ) -> list[Tensor]:
        """For a part of the relevance: the derivative at the whole, because a rescaled step is not linear."""
        outputs = [index for index, _ in whole]

        def back(*values: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._back(list(zip(outputs, values, strict=True)), carries, call))

        at, direction = (tuple(value for _, value in some) for some in (whole, parts))
        tangents: tuple[Tensor, ...] = torch.func.jvp(back, at, direction)[1]
        return list(tangents)

    def _back(self, parts: list[tuple[int, Tensor]], carries: list[bool], call: Recurrence) -> list[Tensor]:
        """The relevance of the sequence and of each state, then what is absorbed, by reason."""
        x, runs = call.sequence, run(call).steps
        hidden = call.states[0].shape[2]
        arriving = [x.new_zeros(x.shape[1], hidden * call.directions) for _ in x]
        states = [[torch.zeros_like(one) for one in state] for state in call.states]
        kept = {reason: x.new_zeros(x.shape[1]) for reason in _KEPT}
        for index, part in parts:
            if index == 0:
                steps = part.unbind(1 if call.batch_first else 0)
                arriving = [a + b for a, b in zip(arriving, steps, strict=True)]
            else:
                states[index - 1] = [a + b for a, b in zip(states[index - 1], part.unbind(0), strict=True)]
        for layer in reversed(range(call.layers)):
            handed = [torch.zeros_like(step.x) for step in runs[layer * call.directions]]
            for direction in range(call.directions):
                at = layer * call.directions + direction
                outputs = [r[:, direction * hidden : (direction + 1) * hidden] for r in arriving]
                one = _Direction(self, call, at, kept)
                final = [state[at] for state in states]
                shares, initial = one.back(runs[at], outputs, final, carries[1:], backwards=direction == 1)
                for state, share in zip(states, initial, strict=True):
                    state[at] = share
                handed = [a + b for a, b in zip(handed, shares, strict=True)]
            arriving = handed
        results = [torch.stack(arriving, dim=1 if call.batch_first else 0), *map(torch.stack, states)]
        constant = [share for share, receives in zip([arriving, *states], carries, strict=True) if not receives]
        kept[CONSTANT] = sum((row_sums(share) for share in constant), kept[CONSTANT])
        return [*results, *kept.values()]


class _Direction:
    """One layer in one direction.

    Args:
        rule: how relevance is shared.
        call: the call of all layers.
        at: which one.
        kept: collects what is absorbed, by reason.
    """

    def __init__(self, rule: Recurrent, call: Recurrence, at: int, kept: dict[str, Tensor]) -> None:
        self.rule = rule
        self.call = call
        self.weights = call.weights_of(at)
        self.kept = kept

    def back(
        self, steps: list[Any], outputs: list[Tensor], states: list[Tensor], carries: list[bool], *, backwards: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The relevance of each step's input, and of the initial states."""
        shares: list[Tensor] = [torch.empty(0)] * len(steps)
        for t in range(len(steps)) if backwards else reversed(range(len(steps))):
            supports = self._supports(steps[t], carries, self.call.begun(t, backwards))
            active = self.call.active(t)
            if active is None:
                shares[t], states = self._through(steps[t], [outputs[t] + states[0], *states[1:]], supports)
                continue
            # Without a step an item's output is a constant, and its states are those before.
            self.kept[CONSTANT] = self.kept[CONSTANT] + row_sums(outputs[t] * ~active)
            here = [state * active for state in [outputs[t] + states[0], *states[1:]]]
            shares[t], before = self._through(steps[t], here, supports)
            states = [old + state * ~active for old, state in zip(before, states, strict=True)]
        return shares, states

    def _supports(self, step: Any, carries: list[bool], begun: Tensor | bool) -> Supports:
        states = [step.h, step.c] if isinstance(step, LstmStep) else [step.h]
        if begun is True:
            return [None] * len(states)
        return [
            None if carried else (state.any(dim=1, keepdim=True) | begun).to(state.dtype)
            for state, carried in zip(states, carries, strict=True)
        ]

    def _through(self, step: Any, states: list[Tensor], supports: Supports) -> tuple[Tensor, list[Tensor]]:
        """From the states after a step to its input and the states before it."""
        if isinstance(step, LstmStep):
            return self._through_lstm(step, *states, *supports)
        if isinstance(step, GruStep):
            return self._through_gru(step, *states, *supports)
        return self._through_both(step, self.weights, *states, *supports)

    def _through_lstm(
        self, step: LstmStep, to_h: Tensor, to_c: Tensor, h_support: Tensor | None, c_support: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if self.weights.projection is not None:
            to_h = self._linear(step.squashed, self.weights.projection, None, to_h)
        to_c, to_added = self._split(to_h + to_c, step.kept, step.added, c_support)
        share, (to_h,) = self._through_both(step, self.weights.gate(2, 4), to_added, h_support)
        return share, [to_h, to_c]

    def _through_gru(self, step: GruStep, to_h: Tensor, support: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        weights = self.weights.gate(2, 3)
        to_kept, to_added = self._split(to_h, step.kept, step.added, support)
        share = torch.zeros_like(step.x)
        if support is not None:  # from a start from zero the second term is a constant: a part of the bias
            bias = step.of_state if weights.input_bias is None else step.of_state + weights.input_bias
            share = self._linear(step.x, weights.input, bias, to_added * (1 - support))
            to_added = to_added * support
        to_state, to_input = self._split(to_added, step.of_state, step.of_input, support)
        share = share + self._linear(step.x, weights.input, weights.input_bias, to_input)
        to_h = to_kept + self._linear(step.h, weights.hidden, weights.hidden_bias, to_state)
        return share, [to_h]

    def _through_both(
        self, step: LstmStep | RnnStep, weights: Weights, relevance: Tensor, support: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Through one linear map of input and state."""
        weight, bias = weights.joint
        carriers = None
        if support is not None:
            carriers = torch.cat([torch.ones_like(step.x), support.expand_as(step.h)], dim=1)
        share = self._linear(torch.cat([step.x, step.h], dim=1), weight, bias, relevance, carriers)
        to_x, to_h = share.tensor_split([step.x.shape[1]], dim=1)
        return to_x, [to_h]

    def _linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, support: Tensor | None = None
    ) -> Tensor:
        shares = self.rule.linear(Dense(), x, weight, bias, relevance, support=support)
        self._keep(shares)
        return shares.only

    def _split(
        self, relevance: Tensor, old: Tensor, new: Tensor, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Between what comes from before and what is new, as between skip and residual."""
        shares = self.rule.split(
            relevance, old, new, skip_support=None if support is None else support.expand_as(old)
        )  # fmt: skip
        self._keep(shares)
        to_old, to_new = (torch.zeros_like(old) if share is None else share for share in shares.operands)
        return to_old, to_new

    def _keep(self, shares: Shares) -> None:
        for reason, amount in shares.absorbed.items():
            self.kept[reason] = self.kept[reason] + row_sums(amount())
