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

from fxlrp.evaluation.evaluated_image import EvaluatedImage
from fxlrp.evaluation.measure import Prepared

ROUNDS = 5


def measure_costs(
    image: EvaluatedImage, target: int, methods: Sequence[Prepared], model: nn.Module, rounds: int = ROUNDS
) -> dict[str, float]:
    """By method, its time / that of a forward pass: the median over rounds in which all take turns."""
    inputs = image.input
    targets = torch.tensor([target], device=inputs.device)
    ready = {m.entry.spec.name: m.explain for m in methods if m.explain is not None}

    def forward() -> Any:
        with torch.no_grad():
            return model(inputs)

    ratios: dict[str, list[float]] = {name: [] for name in ready}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(rounds + 1):  # the first one warms up
            base = _seconds(forward, inputs.device)
            for name, explain in list(ready.items()):
                try:
                    taken = _seconds(partial(explain, inputs, targets), inputs.device)
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
