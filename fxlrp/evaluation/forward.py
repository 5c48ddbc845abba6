"""The forward pass that metrics repeat, as it is or compiled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.runtime.backends import EAGER, INDUCTOR, freezing

FORWARD_BACKENDS = (EAGER, INDUCTOR)


class CompiledForward(nn.Module):
    """A classifier compiled by Inductor, for batches of one size; on the CPU with its weights packed into it.

    Args:
        model: in eval mode. It is not changed, and must not change while this is in use.
        batch_size: how many it takes at once. More are taken apart, fewer filled up, so that nothing is compiled anew.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self._run = torch.compile(model, dynamic=False)
        self.train(model.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model gives, to the last digits."""
        with torch.no_grad(), freezing(inputs.device.type == "cpu" and inputs.dtype != torch.float64):
            return torch.cat([self._of(some) for some in torch.split(inputs, self.batch_size)])

    def _of(self, inputs: Tensor) -> Tensor:
        filled = F.pad(inputs, [0, 0] * (inputs.dim() - 1) + [0, self.batch_size - len(inputs)])
        logits: Tensor = self._run(filled)
        return logits[: len(inputs)]


def forward_by(model: nn.Module, backend: str, batch_size: int) -> nn.Module:
    """The model as a backend runs it, ``"eager"`` or ``"inductor"``."""
    return model if backend == EAGER else CompiledForward(model, batch_size)
