"""Where relevance starts: at the model's output.

A start is a function ``(output, target) -> relevance``, the relevance in the shape of the
output. ``output`` is (batch, classes) for the named ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.errors import StartError
from fxlrp.rules.items import Items, item_sum
from fxlrp.rules.primitives import primitive

Start = Callable[[Tensor, Tensor | None], Tensor]


@primitive
def total(relevance: Tensor, items: Items | None = None) -> Tensor:
    """The sum over everything but the batch: (batch,)."""
    return item_sum(relevance, items).to(relevance.dtype)


@primitive
def resolve_target(output: Tensor, target: Tensor | None) -> Tensor | None:
    """The target, or the predicted class where none was given: (batch,)."""
    if target is not None or output.dim() != 2:
        return target
    return output.argmax(dim=1)


def _at_target(output: Tensor, target: Tensor | None, values: Tensor) -> Tensor:
    assert target is not None
    index = target.unsqueeze(1)
    return torch.zeros_like(output).scatter(1, index, values.gather(1, index))


@primitive
def probability(output: Tensor, target: Tensor | None) -> Tensor:
    """The softmax probability of the target, zero at the other classes."""
    return _at_target(_two_axes(output), target, output.softmax(dim=1))


@primitive
def logit(output: Tensor, target: Tensor | None) -> Tensor:
    """The target's own output, zero at the other classes."""
    return _at_target(_two_axes(output), target, output)


@primitive
def one(output: Tensor, target: Tensor | None) -> Tensor:
    """One at the target, zero at the other classes."""
    return _at_target(_two_axes(output), target, torch.ones_like(output))


@primitive
def itself(output: Tensor, target: Tensor | None) -> Tensor:
    """The output itself, whatever its shape: for a regression or a similarity. The target is not used."""
    return output


def _two_axes(output: Tensor) -> Tensor:
    if output.dim() != 2:
        raise StartError(
            f"the output has shape {tuple(output.shape)}, and this start needs (batch, classes): "
            "give start='output', or a callable (output, target) -> relevance of the output"
        )
    return output


NONNEGATIVE = frozenset({probability, one})
"""The starts that are nowhere negative."""

STARTS: dict[str, Start] = {"probability": probability, "logit": logit, "one": one, "output": itself}
"""The starts that ``compile(start=…)`` knows by name."""


@primitive
def one_row(values: Tensor, row: Tensor) -> Tensor:
    """The entry ``row``, a number, of values (rows, ...)."""
    return values.index_select(0, row.reshape(1)).squeeze(0)


class RowsOfStarts(torch.nn.Module):
    """A start for many targets: called for each, so that whatever it is it gets (batch,) targets as ever.

    Args:
        start: a start.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.start = start

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """The relevance of ``output`` for targets (rows, batch): (rows, *output)."""
        return torch.stack([self.start(output, target) for target in targets])


class CustomStart(torch.nn.Module):
    """A caller's own start, checked each time it is used."""

    def __init__(self, function: Start) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor, target: Tensor | None) -> Tensor:
        relevance = self.function(output, target)
        if not isinstance(relevance, Tensor) or relevance.shape != output.shape:
            got = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
            raise StartError(f"start= must return relevance like the output, {tuple(output.shape)}, not {got}")
        return relevance
