"""How long each step of a program takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxlrp.passes.facts import KEY, Emitted

_ROUNDS = 3


class Step(NamedTuple):
    """What is timed as one.

    Attributes:
        node: a forward node, by name.
        relevance: whether it is the propagation of the node's relevance, and not the node itself.
    """

    node: str
    relevance: bool


def measure(program: fx.GraphModule, arguments: Sequence[Any]) -> dict[Step, float]:
    """Milliseconds of each step, the median of a few rounds, after one that does not count.

    Args:
        program: as it was emitted.
        arguments: its arguments.
    """
    devices = {value.device for value in arguments if isinstance(value, Tensor) and value.is_cuda}
    rounds = []
    with torch.no_grad():
        for _ in range(1 + _ROUNDS):
            timed = _Timed(program, devices)
            timed.run(*arguments)
            rounds.append(timed.seconds)
    return {step: 1000 * median(seconds[step] for seconds in rounds[1:]) for step in rounds[0]}


class _Timed(fx.Interpreter):
    """Runs a program step by step and keeps the time of each."""

    def __init__(self, program: fx.GraphModule, devices: set[torch.device]) -> None:
        super().__init__(program)
        self.devices = devices
        self.seconds: defaultdict[Step, float] = defaultdict(float)

    def run_node(self, n: fx.Node) -> Any:
        self._wait()
        begun = time.perf_counter()
        value = super().run_node(n)
        self._wait()
        if n.op not in ("placeholder", "output"):
            emitted = n.meta.get(KEY)
            step = Step(emitted.node, True) if isinstance(emitted, Emitted) else Step(n.name, False)
            self.seconds[step] += time.perf_counter() - begun
        return value

    def _wait(self) -> None:
        for device in self.devices:
            torch.cuda.synchronize(device)
