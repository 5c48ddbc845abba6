"""What methods cost, as multiples of one forward pass of the model on the same image."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from fxlrp.evaluation.items import Item
from fxlrp.evaluation.measure import Prepared

ROUNDS = 5


def measure_costs(
    item: Item, target: int, methods: Sequence[Prepared], model: nn.Module, rounds: int = ROUNDS
) -> dict[str, float]:
    """By method, its time / that of a forward pass: the median over rounds in which all take turns."""
    inputs = item.input
    targets = torch.tensor([target], device=inputs.device)
    ready = {m.entry.spec.name: m.explain for m in methods if m.explain is not None}

    def forward() -> Any:
        with torch.no_grad():
            return model(inputs)

    found: dict[str, list[float]] = {name: [] for name in ready}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(rounds + 1):  # the first one warms up
            base = _seconds(forward, inputs.device)
            for name, explain in list(ready.items()):
                try:
                    taken = _seconds(partial(explain, inputs, targets), inputs.device)
                except Exception:  # told with its reason among the results
                    del ready[name]
                    continue
                if turn:
                    found[name].append(taken / base)
    return {name: statistics.median(ratios) for name, ratios in found.items() if ratios}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
