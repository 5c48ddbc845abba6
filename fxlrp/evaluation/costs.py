"""What methods cost, as multiples of one forward pass of the model on the same image or passage."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SLOW, SLOW_ROUNDS = 30, 3
"""What takes longer than so many forward passes takes at most so many turns, and needs no warming up."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Attributes:
        turns: of each turn, its time over the mean of the forward passes before and after it.
        placebo: of each turn, the time of the forward pass after it over that of the one before: 1 but for noise.
    """

    turns: Sequence[float]
    placebo: Sequence[float]

    @property
    def median(self) -> float:
        """Of all turns."""
        return statistics.median(self.turns)

    @classmethod
    def read(cls, content: Any) -> Cost:
        """From what a file of results holds; earlier ones held the median alone."""
        return cls(**content) if isinstance(content, Mapping) else cls([content], [])


def costs_of(content: Mapping[str, Any]) -> dict[str, Cost]:
    """By method, from what a file of results holds."""
    return {name: Cost.read(found) for name, found in content.items()}


def told(values: Sequence[float], digits: int = 1) -> str:
    """Median, and between which values all of them are."""
    if not values:
        return "–"
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f"{median} ({least} to {most})"


def measure_costs(
    calls: Mapping[str, Call], forward: Call, device: torch.device, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """By method, the content of its :class:`Cost`; methods that fail are left out.

    In every round the methods take turns, each between two forward passes. On a CPU times are processor time: a wait
    for other programs does not count, and a time in several threads is the sum of theirs.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, ratio, placebo in _turns(calls, forward, device, rounds):
            cost = found.setdefault(name, {"turns": [], "placebo": []})
            cost["turns"].append(ratio)
            cost["placebo"].append(placebo)
    return {name: found[name] for name in calls if name in found}


def _turns(
    calls: Mapping[str, Call], forward: Call, device: torch.device, rounds: int
) -> Iterator[tuple[str, float, float]]:
    """Turn by turn, the method whose it is, its time over a forward pass, and the placebo."""
    left = Counter(dict.fromkeys(calls, rounds + 1))
    _seconds(forward, device)
    while +left:
        before = _seconds(forward, device)
        for name, call in calls.items():
            if not left[name]:
                continue
            try:
                taken = _seconds(call, device)
            except Exception:  # its reason is among the results
                left[name] = 0
                continue
            after = _seconds(forward, device)
            ratio, placebo = 2 * taken / (before + after), after / before
            before = after
            first, slow = left[name] == rounds + 1, ratio > SLOW
            left[name] = min(SLOW_ROUNDS, rounds) - 1 if first and slow else left[name] - 1
            if not first or slow:  # the first turn of a fast one warms it up
                yield name, ratio, placebo


def _seconds(call: Call, device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.process_time()
        call()
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun
