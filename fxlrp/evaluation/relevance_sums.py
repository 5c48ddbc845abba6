"""How much of the relevance that entered arrives."""

from __future__ import annotations

from torch import Tensor

from fxlrp.results.explanation import Explanation

INPUT = "input"


def arrived(explanation: Explanation) -> dict[str, Tensor]:
    """The sums of relevance over each item at the network's input and at each checkpoint.

    Args:
        explanation: of an explainer; see ``checkpoints`` of :func:`fxlrp.compile`.

    Returns:
        By module, and ``"input"``: (batch,), float64.
    """
    at_input = sum(_total(relevance) for relevance in explanation.by_input.values())
    assert isinstance(at_input, Tensor)
    return {INPUT: at_input, **{name: _total(relevance) for name, relevance in explanation.checkpoints.items()}}


def conservation(explanation: Explanation) -> dict[str, Tensor]:
    """Σ R / the relevance that entered, at the network's input and at each checkpoint (Otsuki et al., 2024, Fig. 7).

    Args:
        explanation: of an explainer; see ``checkpoints`` of :func:`fxlrp.compile`.

    Returns:
        By module, and ``"input"``: (batch,), float64; 1 where all arrives, NaN or infinity where nothing entered.
    """
    return {name: total / explanation.start for name, total in arrived(explanation).items()}


def _total(relevance: Tensor) -> Tensor:
    return relevance.flatten(1).double().sum(dim=1)
