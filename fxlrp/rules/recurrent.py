"""Relevance through recurrent layers, step by step, their gates held constant."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.linear import LinearRule, ZPlus
from fxlrp.rules.rule import BIAS, CONSTANT, STABILIZER, Ask, Rule, Shares
from fxlrp.rules.split import RatioSplit, SplitRule
from fxlrp.steps.declaration import along, primitive
from fxlrp.steps.dense import Dense
from fxlrp.steps.lstm import Lstm, LstmStep, candidate_map, forward_steps, row_sums
from fxlrp.vocabulary.operation import Kind

_KEPT = (CONSTANT, STABILIZER, BIAS)


class Recurrent(Rule):
    """Through an LSTM to its sequence (Arras et al., WASSA 2017: the signal takes all, gates take nothing).

    At ``c = f ⊙ c' + i ⊙ g`` relevance splits by ``split``; at ``g = tanh(W x + U h')`` it goes on by
    ``linear``. Initial states that are not zero absorb what they get.

    Args:
        linear: the rule of the candidate's linear map.
        split: the rule of the sum that makes the cell state.
    """

    kinds = (Kind.RECURRENT,)

    def __init__(self, linear: LinearRule | None = None, split: SplitRule | None = None) -> None:
        self.linear = ZPlus() if linear is None else linear
        self.split = RatioSplit() if split is None else split

    @property
    def keeps_sign(self) -> bool:  # type: ignore[override]
        return self.linear.keeps_sign and self.split.keeps_sign

    def __call__(self, relevance: list[tuple[int, Tensor]], lstm: Lstm) -> Shares:
        """Share relevance of the outputs out over the sequence.

        Args:
            relevance: pairs of an output's index (0: the sequence, 1 and 2: the final h and c) and
                its relevance.
            lstm: the call.
        """

        def lstm_relevance(parts: Any, x: Any, states: Any, weights: Any, *form: Any) -> list[Tensor]:
            return self._back(parts, Lstm(x, states, weights, *form))

        def lstm_part(parts: Any, x: Any, states: Any, weights: Any, *form: Any, whole: Any) -> Any:
            return self._back_along(parts, whole[0], Lstm(x, states, weights, *form))

        form = (lstm.biases, lstm.layers, lstm.both, lstm.batch_first)
        back = primitive(lstm_relevance)
        along(back)(lstm_part)
        results = back(relevance, lstm.x, lstm.states, lstm.weights, *form)
        return Shares([results[0]], {reason: partial(results.__getitem__, i + 1) for i, reason in enumerate(_KEPT)})

    def at(self, relevance: Any, ask: Ask) -> Shares:
        return self(relevance, ask("bound"))

    def _back_along(
        self, parts: list[tuple[int, Tensor]], whole: list[tuple[int, Tensor]], lstm: Lstm
    ) -> list[Tensor]:
        """For a part of the relevance: the derivative at the whole, because a rescaled step is not linear."""
        outputs = [index for index, _ in whole]

        def back(*values: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._back(list(zip(outputs, values, strict=True)), lstm))

        at, direction = (tuple(value for _, value in some) for some in (whole, parts))
        tangents: tuple[Tensor, ...] = torch.func.jvp(back, at, direction)[1]
        return list(tangents)

    def _back(self, parts: list[tuple[int, Tensor]], lstm: Lstm) -> list[Tensor]:
        directions = 2 if lstm.both else 1
        x = lstm.x.transpose(0, 1) if lstm.batch_first else lstm.x
        runs = forward_steps(lstm, x)
        hidden = lstm.states[0].shape[2]
        arriving = [x.new_zeros(x.shape[1], hidden * directions) for _ in x]
        last = [[torch.zeros_like(state[0]) for _ in state] for state in lstm.states]
        kept = {reason: x.new_zeros(x.shape[1]) for reason in _KEPT}
        for index, part in parts:
            if index == 0:
                steps = part.unbind(1 if lstm.batch_first else 0)
                arriving = [a + b for a, b in zip(arriving, steps, strict=True)]
            else:
                last[index - 1] = [a + b for a, b in zip(last[index - 1], part.unbind(0), strict=True)]
        for layer in reversed(range(lstm.layers)):
            handed = [torch.zeros_like(step.x) for step in runs[layer * directions]]
            for direction in range(directions):
                at = layer * directions + direction
                span = slice(direction * hidden, (direction + 1) * hidden)
                outputs = [r[:, span] for r in arriving]
                shares = self._direction(
                    runs[at], outputs, last[0][at], last[1][at], candidate_map(lstm, at), kept, backwards=direction == 1
                )
                handed = [a + b for a, b in zip(handed, shares, strict=True)]
            arriving = handed
        return [torch.stack(arriving, dim=1 if lstm.batch_first else 0), *kept.values()]

    def _direction(
        self, steps: list[LstmStep], outputs: list[Tensor], to_h: Tensor, to_c: Tensor,
        candidate: tuple[Tensor, Tensor | None], kept: dict[str, Tensor], *, backwards: bool,
    ) -> list[Tensor]:
        """The relevance of each step's input; ``kept`` collects what is absorbed, by reason."""
        weight, bias = candidate
        shares: list[Tensor] = [torch.empty(0)] * len(steps)
        order = range(len(steps)) if backwards else reversed(range(len(steps)))
        first = len(steps) - 1 if backwards else 0
        for t in order:
            step = steps[t]
            starts = t == first and not step.h.any() and not step.c.any()
            support = {"skip_support": torch.zeros_like(step.c)} if starts else {}
            split = self.split(outputs[t] + to_h + to_c, step.kept, step.added, **support)
            to_kept, to_added = split.operands
            both = torch.cat([step.x, step.h], dim=1)
            carriers = torch.cat([torch.ones_like(step.x), torch.zeros_like(step.h)], dim=1) if starts else None
            assert to_added is not None
            through = self.linear(Dense(), both, weight, bias, to_added, support=carriers)
            for reason, amount in (*split.absorbed.items(), *through.absorbed.items()):
                kept[reason] = kept[reason] + row_sums(amount())
            share = through.only
            shares[t], to_h = share[:, : step.x.shape[1]], share[:, step.x.shape[1] :]
            to_c = torch.zeros_like(to_h) if to_kept is None else to_kept
        kept[CONSTANT] = kept[CONSTANT] + row_sums(to_h + to_c)
        return shares
