"""What methods cost, as multiples of one forward pass of the model on the same image or passage."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

ROUNDS = 5


def measure_costs(
    calls: Mapping[str, Callable[[], Any]], forward: Callable[[], Any], device: torch.device, rounds: int = ROUNDS
) -> dict[str, float]:
    """By method, its time / that of a forward pass: the median over rounds in which all take turns."""
    ready = dict(calls)
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(rounds + 1):  # the first one warms up
            base = _seconds(forward, device)
            for name, call in list(ready.items()):
                try:
                    taken = _seconds(call, device)
                except Exception:  # its reason is among the results
                    del ready[name]
                    continue
                if turn:
                    ratios[name].append(taken / base)
    return {name: statistics.median(several) for name, several in ratios.items() if several}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
