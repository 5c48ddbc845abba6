"""How long each step of a program takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from fxlrp.passes.facts import KEY, Emitted

ROUNDS = 3
_WARMUPS = 2  # weights are packed at the second call


class Step(NamedTuple):
    """What is timed as one.

    Attributes:
        node: a forward node, by name; ``""``: what the optimiser keeps of the weights.
        relevance: whether it is the propagation of the node's relevance, and not the node itself.
    """

    node: str
    relevance: bool


class Spent(NamedTuple):
    """Milliseconds of a step.

    Attributes:
        products: in convolutions and matrix products.
        rest: in all else.
    """

    products: float
    rest: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.products + self.rest


def measure(program: fx.GraphModule, arguments: Sequence[Any], rounds: int = ROUNDS) -> dict[Step, Spent]:
    """What each step takes: medians of some rounds, after a few that do not count.

    Args:
        program: as it was emitted, or as the optimiser left it.
        arguments: its arguments.
        rounds: how many count.
    """
    devices = {value.device for value in arguments if isinstance(value, Tensor) and value.is_cuda}
    found: defaultdict[Step, list[tuple[float, float]]] = defaultdict(list)
    with torch.no_grad():
        products = _products(program, arguments)
        for number in range(_WARMUPS + rounds):
            timed = _Timed(program, devices)
            timed.run(*arguments)
            if number < _WARMUPS:
                continue
            once: defaultdict[Step, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for node, seconds in timed.seconds.items():
                once[_step(node)][node not in products] += 1000 * seconds
            for step, (product, rest) in once.items():
                found[step].append((product, rest))
    return {step: Spent(*map(median, zip(*times, strict=True))) for step, times in found.items()}


def _step(node: fx.Node) -> Step:
    emitted = node.meta.get(KEY)
    return Step(emitted.node, True) if isinstance(emitted, Emitted) else Step(node.name, False)


class _Timed(fx.Interpreter):
    """Runs a program node by node and keeps the time of each."""

    def __init__(self, program: fx.GraphModule, devices: set[torch.device]) -> None:
        super().__init__(program)
        self.extra_traceback = False  # an error of a rule is raised as it is
        self.devices = devices
        self.seconds: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        self._wait()
        begun = time.perf_counter()
        value = super().run_node(n)
        self._wait()
        if n.op.startswith("call"):  # the interpreter looks attributes up by their paths, which no program does
            self.seconds[n] = time.perf_counter() - begun
        return value

    def _wait(self) -> None:
        for device in self.devices:
            torch.cuda.synchronize(device)


# Products ----------------------------------------------------------------------------------------

_PRODUCTS = ("convolution", "conv2d", "linear", "mm", "bmm", "addmm", "baddbmm", "mv", "dot", "matmul")
_ATTENTION = "scaled_dot_product"


def _products(program: fx.GraphModule, arguments: Sequence[Any]) -> set[fx.Node]:
    """The nodes that compute a convolution or a matrix product; looked for where they run, by a run that counts not."""
    with _Watched() as seen:
        watching = _Watching(program, seen)
        watching.run(*arguments)
    return watching.found


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers whether an operator that is a product was called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1].strip("_")
        self.called |= name.startswith((_ATTENTION, "convolution")) or name in _PRODUCTS
        return func(*args, **(kwargs or {}))


class _Watching(fx.Interpreter):
    """Runs a program and keeps which nodes called a product."""

    def __init__(self, program: fx.GraphModule, seen: _Watched) -> None:
        super().__init__(program)
        self.seen = seen
        self.found: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        self.seen.called = False
        value = super().run_node(n)
        if self.seen.called and n.op == "call_function":
            self.found.add(n)
        return value
