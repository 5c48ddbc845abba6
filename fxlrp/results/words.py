"""What was found, in words: titles of maps, and what became of relevance."""

from __future__ import annotations

from collections.abc import Mapping

_KEPT_BY = {
    "stabilizer": "the stabilizers of denominators", "bias": "biases",
    "constant": "constant values, such as a class token", "padding": "padding",
    "gradient": "rules that are derivatives", "condition": "channels that the condition leaves out",
}  # fmt: skip


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Three digits, with a minus as wide as a plus."""
    return f"{value:.3g}".replace("-", "−")


def short(value: float) -> str:
    """Two digits: ``0.0012``, ``−7 · 10⁻⁵``."""
    if not value or 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}".replace("-", "−")
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{float(digits):g} · 10{str(int(power)).translate(_RAISED)}".replace("-", "−")


def percent(share: float) -> str:
    """A probability or a share, between 0 and 1."""
    return "under 0.1 %" if 0 < share < 5e-4 else f"{100 * share:.1f} %"


def titled(question: str, probability: float | None, start: float, arrived: float, unit: str) -> str:
    """Above a map: the question, the probability, what entered, and which share of it arrived."""
    told = [question] + ([] if probability is None else [percent(probability)])
    told.append(f"{number(start)} {unit}".rstrip())
    return ", ".join(told) + (f" ({100 * arrived / start:.0f} % arrived)" if start else "")


def in_words(start: float, arrived: float, absorbed: Mapping[str, float] | None, unit: str) -> str:
    """The ledger as a sentence.

    Args:
        start: the relevance that entered.
        arrived: the sum at the input.
        absorbed: by reason; ``None``: no ledger was kept.
        unit: of the start, such as ``"logits"``.
    """
    if absorbed is None:
        return "What was absorbed on the way was not asked for."
    kept, entered = absorbed_in_words(absorbed), f"{number(start)} {unit}".rstrip()
    if not kept:
        return f"Nothing was absorbed: all {entered} arrived at the input."
    share = f" ({100 * arrived / start:.1f} %)" if start else ""
    return f"Of {entered}, {number(arrived)} arrived at the input{share}. Absorbed on the way: {kept}."


def absorbed_in_words(absorbed: Mapping[str, float], unit: str = "") -> str:
    """What was absorbed, by reason, the most first; empty: nothing was."""
    kept = sorted(((abs(value), name, value) for name, value in absorbed.items() if value), reverse=True)
    return "; ".join(f"{number(value)}{unit} by {_KEPT_BY.get(name, name)}" for _, name, value in kept)
