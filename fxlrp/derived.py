"""What an explainer makes of the weights alone, such as their positive parts, kept until they change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.rules.primitives import plain

_SAMPLES = 16


class Derived(nn.Module):
    """The part of a program that depends on weights, and on the shape of an input, but on nothing else.

    Called as a module in the program it computes its values, or hands out those it has. They are
    made anew where a weight was replaced or written to, where the input has another form, and at
    every call where they could not be kept: while torch traces or compiles, while gradients of the
    weights are recorded, for weights made in inference mode, and off the CPU, where they cost little.

    torch counts writes to a tensor, but not those through ``.data``. Of these a sample of each
    tensor's elements sees the usual ones, which write all of it; :meth:`forget` is for the others.

    Attributes:
        program: maps the inputs whose shapes matter to a list of tensors.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program
        self.names = sorted({str(node.target) for node in program.graph.nodes if node.op == "get_attr"})
        self._seen: Any = None
        self._watched: list[tuple[Tensor, int, int, Any, bytes]] = []
        self._values: list[Tensor] = []

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        if torch.compiler.is_compiling():
            return self._made(inputs)
        weights = [self._weight(name) for name in self.names]
        if not all(plain(value) and value.device.type == "cpu" for value in (*weights, *inputs)):
            return self._made(inputs)
        if not all(map(_counts_writes, weights)):
            return self._made(inputs)
        seen = [(x.shape[1:], x.dtype, x.is_contiguous()) for x in inputs]
        if seen != self._seen or not self._unchanged(weights):
            self._values = self._made(inputs)
            self._seen, self._watched = seen, [_watch(weight) for weight in weights]
        return self._values

    def forget(self) -> None:
        """Make the values anew at the next call."""
        self._seen = None

    def _made(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        made: list[Tensor] = self.program(*inputs)
        return made

    def _weight(self, name: str) -> Tensor:
        found: Any = self.program
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def _unchanged(self, weights: list[Tensor]) -> bool:
        return all(
            weight is known and weight._version == version and weight.data_ptr() == place
            and (sample is None or sample.tobytes() == taken)
            for weight, (known, version, place, sample, taken) in zip(weights, self._watched, strict=True)
        )  # fmt: skip


def _watch(weight: Tensor) -> tuple[Tensor, int, int, Any, bytes]:
    """A tensor, and what tells whether it was written to: its version, its place, elements from all over it."""
    sample = None
    if weight.numel() and weight.dtype in (torch.float32, torch.float64):
        count = min(weight.numel(), _SAMPLES)
        dense = torch.as_strided(weight.detach(), (weight.numel(),), (1,)) if _fills(weight) else None
        if dense is not None:
            sample = dense[:: weight.numel() // count].numpy()
    return weight, weight._version, weight.data_ptr(), sample, b"" if sample is None else sample.tobytes()


def _fills(weight: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, in whatever order."""
    return weight.is_contiguous() or any(
        weight.dim() == rank and weight.is_contiguous(memory_format=form)
        for rank, form in ((4, torch.channels_last), (5, torch.channels_last_3d))
    )


def _counts_writes(value: Tensor) -> bool:
    """Whether torch counts the writes to a tensor: not to inference tensors, nor to those that stand for others."""
    return type(value) in (Tensor, nn.Parameter) and not value.is_inference()
