"""Starts: the relevance that enters at the model's output, for ``compile(start=…)``.

A start is a function ``(output, target) -> relevance``, the relevance in the shape of the
output. ``output`` is (batch, classes) for the named ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import StartError
from fxlrp.steps.declaration import primitive

__all__ = ["STARTS", "Start", "against"]

Start = Callable[[Tensor, Tensor | None], Tensor]


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
def given(output: Tensor, target: Tensor | None) -> Tensor:
    """The target's own output, which is a probability already, zero at the other classes; (batch,): the output."""
    return output if output.dim() < 2 else _at_target(_two_axes(output), target, output)


@primitive
def value(output: Tensor, target: Tensor | None) -> Tensor:
    """The same of what may be negative, such as the difference of two probabilities."""
    return given(output, target)


@primitive
def by_shape(output: Tensor, target: Tensor | None) -> Tensor:
    """The probability of the target where there are two or more classes; of one output the value itself."""
    if output.dim() < 2:
        return output
    return logit(output, target) if _two_axes(output).shape[1] == 1 else probability(output, target)


@primitive
def one(output: Tensor, target: Tensor | None) -> Tensor:
    """One at the target, zero at the other classes."""
    return _at_target(_two_axes(output), target, torch.ones_like(output))


@primitive
def itself(output: Tensor, target: Tensor | None) -> Tensor:
    """The output itself, whatever its shape: for a regression or a similarity. The target is not used."""
    return output


@primitive
def contrastive(output: Tensor, target: Tensor | None) -> Tensor:
    """The target's logit z_t, and −z_t / (N − 1) at each other of N classes: CLRP (Gu et al., ACCV 2018).

    What speaks for the target rather than for the others. It sums to zero; the paper keeps
    the positive part of the map.
    """
    classes = _two_axes(output).shape[1]
    if classes < 2:
        raise StartError("a contrast needs at least two classes")
    assert target is not None
    index = target.unsqueeze(1)
    chosen = output.gather(1, index)
    return (-chosen / (classes - 1)).expand_as(output).scatter(1, index, chosen)


@primitive
def softmax_gradient(output: Tensor, target: Tensor | None) -> Tensor:
    """y_t (1 − y_t) at the target and −y_t y_n at the others, of probabilities y: SGLRP (Iwana et al., ICCVW 2019).

    The gradient of the target's probability by the logits. It sums to zero.
    """
    probabilities = _two_axes(output).softmax(dim=1)
    assert target is not None
    index = target.unsqueeze(1)
    chosen = probabilities.gather(1, index)
    others = probabilities.scatter(1, index, 0)
    # Σ others, which is 1 − y_t without what that subtraction would lose.
    return (-chosen * others).scatter(1, index, chosen * others.sum(dim=1, keepdim=True))


@primitive
def log_odds(output: Tensor, target: Tensor | None) -> Tensor:
    """The target's logit z_t, and −q_n z_n at the others, q being their probabilities without the target.

    Evidence for the target against its rivals, in logits: z_t minus what the model expects of the others. What all
    logits share cancels, as it does in the softmax. Up to the entropy of q it is the log of the odds p_t / (1 − p_t).
    """
    if _two_axes(output).shape[1] < 2:
        raise StartError("a contrast needs at least two classes")
    assert target is not None
    index = target.unsqueeze(1)
    others = output.scatter(1, index, float("-inf")).softmax(dim=1)
    against = torch.where(others > 0, -output * others, 0)  # a class that is masked, at −∞, is no rival
    return against.scatter(1, index, output.gather(1, index))


@primitive
def centred(output: Tensor, target: Tensor | None) -> Tensor:
    """The target's logit z_t, and −z_n / (N − 1) at each other of N classes: the target against their mean."""
    classes = _two_axes(output).shape[1]
    if classes < 2:
        raise StartError("a contrast needs at least two classes")
    assert target is not None
    index = target.unsqueeze(1)
    return (-output / (classes - 1)).scatter(1, index, output.gather(1, index))


@primitive
def log_odds_against(output: Tensor, target: Tensor | None, rivals: Tensor) -> Tensor:
    """The target's logit z_t, and −q_n z_n at the rivals, q being their probabilities among themselves.

    Of one rival that is the difference of the two logits, the log of the odds between them.

    Args:
        output: (batch, classes).
        target: (batch,).
        rivals: (batch, rivals), classes. A target that is its own only rival has no relevance.
    """
    values = _two_axes(output).gather(1, rivals)
    weighed = torch.where(values > float("-inf"), values * values.softmax(dim=1), 0)
    return logit(output, target) - torch.zeros_like(output).scatter_add(1, rivals, weighed)


@primitive
def probability_against(output: Tensor, target: Tensor | None, rivals: Tensor) -> Tensor:
    """The target's probability p_t, and −q_n p_n at the rivals, q being their shares: of a model that gives p itself.

    Of one rival that is the difference of the two probabilities.

    Args:
        output: (batch, classes), probabilities.
        target: (batch,).
        rivals: (batch, rivals), classes.
    """
    values = _two_axes(output).gather(1, rivals)
    total = values.sum(dim=1, keepdim=True)
    weighed = torch.where(total > 0, values * values / total.clamp(min=torch.finfo(output.dtype).tiny), 0)
    return given(output, target) - torch.zeros_like(output).scatter_add(1, rivals, weighed)


def contrast(start: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a start becomes where the call names rivals: probabilities are compared as they are, all else as logits."""
    return probability_against if start in (given, value) else log_odds_against


@primitive
def log_odds_by_shape(output: Tensor, target: Tensor | None) -> Tensor:
    """The log-odds of the target where there are two or more classes; of one output the value itself."""
    if output.dim() < 2:
        return output
    return logit(output, target) if _two_axes(output).shape[1] == 1 else log_odds(output, target)


@dataclass(frozen=True, eq=False)
class Against:
    """Why the target rather than another class: the target's logit, and minus the other's.

    Their sum, the difference of the logits, is the log of the odds between the two. Against
    itself a target has no relevance.

    Attributes:
        other: a class, or a tensor (batch,) of them; ``None``: of the classes beside the target
            the strongest.
    """

    other: int | Tensor | None = None

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        classes = _two_axes(output).shape[1]
        if target is None or classes < 2:
            raise StartError("a contrast needs at least two classes")
        index = target.unsqueeze(1)
        other = self._of(output, index)
        if other.shape != target.shape:
            raise StartError(f"against() takes a class, or one per item, ({len(target)},), not {tuple(other.shape)}")
        if not is_compiling() and bool(((other < 0) | (other >= classes)).any()):
            raise StartError(f"against() takes classes from 0 to {classes - 1}, not {other.tolist()}")
        chosen = torch.zeros_like(output).scatter(1, index, output.gather(1, index))
        against = other.unsqueeze(1)
        return chosen - torch.zeros_like(output).scatter(1, against, output.gather(1, against))

    def _of(self, output: Tensor, index: Tensor) -> Tensor:
        if self.other is None:
            return output.scatter(1, index, float("-inf")).argmax(dim=1)
        if isinstance(self.other, Tensor):
            return self.other.to(index)
        return torch.full_like(index.squeeze(1), self.other)


def against(other: int | Tensor | None = None) -> Start:
    """The start for "why this class rather than that one": ``compile(model, start=against(other))``.

    Args:
        other: the other class, or one per item, (batch,); ``None``: of the classes beside the
            target the strongest.

    Raises:
        StartError: ``other`` is neither.
    """
    whole = isinstance(other, Tensor) and not (other.is_floating_point() or other.dtype == torch.bool)
    if not (other is None or whole or (isinstance(other, int) and not isinstance(other, bool))):
        raise StartError(f"against() takes a class number, an integer tensor of them, or nothing, not {other!r}")
    return Against(other)


def _two_axes(output: Tensor) -> Tensor:
    if output.dim() != 2:
        raise StartError(
            f"the output has shape {tuple(output.shape)}, and this start needs (batch, classes). For an embedding or a "
            "regression give start='output'; for one step of a sequence output=lambda output: output[:, -1], for the "
            "next token of a language model output=lambda out: out.logits[:, -1]; or give start= a callable (output, "
            "target) -> relevance in the shape of the output"
        )
    return output


NONNEGATIVE = frozenset({probability, given, one})
"""The starts that are nowhere negative."""

STARTS: dict[str, Start] = {
    "probability": probability, "logit": logit, "one": one, "output": itself,
    "contrastive": contrastive, "softmax_gradient": softmax_gradient, "log_odds": log_odds, "centred": centred,
}  # fmt: skip
"""The starts that ``compile(start=…)`` knows by name, beside :data:`AUTO`."""

AUTO = "auto"
"""The start that fits the end of the model's graph."""

OF_CLASSES: dict[str, tuple[Start, Start]] = {
    "probability": (probability, by_shape), "log_odds": (log_odds, log_odds_by_shape),
}  # fmt: skip
"""What :data:`AUTO` may mean for the logits of classes, by name: where there are several, and where only a look at the
output tells how many."""

STARTS_TOLD = {
    probability: "probability", given: "probability, which the model itself gives",
    value: "value, which the model makes of probabilities", logit: "logit", one: "one",
    itself: "output", contrastive: "contrastive", softmax_gradient: "softmax_gradient",
    log_odds: "log_odds", log_odds_against: "log_odds against the classes given",
    probability_against: "probability against the classes given", centred: "centred",
    by_shape: "probability, or the value itself where there is one output",
    log_odds_by_shape: "log_odds, or the value itself where there is one output",
}  # fmt: skip
"""What an explanation says of where its relevance started."""


def told(start: Callable[..., Tensor]) -> str:
    """What an explanation says of its start."""
    return STARTS_TOLD.get(start, "") or repr(getattr(start, "function", start))


_UNITS = {
    "log_odds": "logits", "logit": "logits", "centred": "logits", "contrastive": "logits",
    "probability": "probability", "value": "probability", "softmax_gradient": "probability", "one": "share of one",
}  # fmt: skip
"""What relevance is in, by the first word of what is told of its start."""


def unit_of(start_name: str) -> str:
    """What relevance is in, by what :func:`told` says of its start; ``"relevance"`` for one of the user's own."""
    return _UNITS.get(start_name.replace(",", " ").partition(" ")[0], "relevance")


class SeveralStarts(torch.nn.Module):
    """A start for several targets: it is called for each, so that any start gets targets (batch,).

    Args:
        start: a start.
    """

    def __init__(self, start: Callable[..., Tensor]) -> None:
        super().__init__()
        self.start = start

    def forward(self, output: Tensor, targets: Tensor, *more: Tensor) -> Tensor:
        """The relevance of ``output`` for targets (targets, batch): (targets, *output); ``more`` is handed on."""
        return torch.stack([self.start(output, target, *more) for target in targets])


OF_CALLER = "_fxlrp_of_caller"
"""An error that bears this attribute was raised by a function that the caller gave: it is handed on as it is."""


class CustomStart(torch.nn.Module):
    """A caller's own start, checked each time it is used."""

    def __init__(self, function: Start) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor, target: Tensor | None) -> Tensor:
        try:
            relevance = self.function(output, target)
        except Exception as error:
            setattr(error, OF_CALLER, True)
            raise
        if not isinstance(relevance, Tensor) or relevance.shape != output.shape:
            got = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
            raise StartError(f"start= must return relevance like the output, {tuple(output.shape)}, not {got}")
        return relevance
