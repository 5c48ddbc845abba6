"""What an explainer makes of the weights alone, such as their positive parts, kept until they change."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxlrp.common.compiling import is_compiling
from fxlrp.common.tensors import Watch, tensor_at, tensor_names, watchable
from fxlrp.steps.primitives import plain


class Derived(nn.Module):
    """The part of a program that depends on weights and on nothing else.

    Called as a module in the program it computes its values, or hands out those it has. They are
    made anew where a weight was replaced or written to, and at
    every call where they could not be kept: while torch traces or compiles, while gradients of the
    weights are recorded, in inference mode, and off the CPU, where they cost little.

    How it is told that a weight was written to, and which writes are not seen, :class:`~fxlrp.common.tensors.Watch`
    says; :meth:`forget` is for those.

    Attributes:
        program: gives a list of tensors.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program
        self.names = tensor_names(program.graph)
        self._kept: tuple[Watch, list[Tensor]] | None = None

    def forward(self) -> list[Tensor]:
        if is_compiling():
            return self._made()
        weights = [tensor_at(self.program, name) for name in self.names]
        if not all(plain(value) and value.device.type == "cpu" for value in weights):
            return self._made()
        if torch.is_inference_mode_enabled() or not watchable(weights):
            return self._made()
        kept = self._kept  # read once: another thread may put others in its place
        if kept is None or not kept[0].unchanged(weights):
            self._kept = kept = Watch(weights), self._made()
        return kept[1]

    def forget(self) -> None:
        """Make the values anew at the next call."""
        self._kept = None

    def _made(self) -> list[Tensor]:
        made: list[Tensor] = self.program()
        return made
