"""The forward pass that metrics repeat, as it is or compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxlrp.backends import EAGER, INDUCTOR, freezing

FORWARD_BACKENDS = (EAGER, INDUCTOR)


class CompiledForward(nn.Module):
    """A classifier compiled by Inductor, for each shape of a batch; on the CPU with its weights packed into it.

    Args:
        model: in eval mode. It is not changed, and must not change while this is in use.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._run = torch.compile(model, dynamic=False)
        self.train(model.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model gives, to the last digits."""
        with torch.no_grad(), freezing(inputs.device.type == "cpu" and inputs.dtype != torch.float64):
            logits: Tensor = self._run(inputs)
            return logits


def forward_by(model: nn.Module, backend: str) -> nn.Module:
    """The model as a backend runs it: ``"eager"`` or ``"inductor"``."""
    return model if backend == EAGER else CompiledForward(model)
