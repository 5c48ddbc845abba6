"""A model as a function of a flat list of tensors, as it is given to ``torch.export``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.answers import Answers, Noted
from fxlrp.capture.call import Call
from fxlrp.capture.captured import flat_outputs
from fxlrp.capture.double import to_run
from fxlrp.common.errors import CaptureError


class Told:
    """What a forward() that was read asked; no attribute of the module, for torch.export puts those back."""

    def __init__(self) -> None:
        self.answers = Answers()

    @property
    def count(self) -> int:
        return len(self.answers.asked)


class Flat(nn.Module):
    """The model as a function of a flat list of tensors, returning one."""

    returns: pytree.TreeSpec

    def __init__(self, model: nn.Module, call: Call, output: Any) -> None:
        super().__init__()
        self.model = model
        self.call = (call, output)
        self.refusal: CaptureError | None = None
        self.known: list[Noted] | None = None
        self.places = False
        self.told = Told()
        self.training = False

    def forward(self, *tensors: Tensor) -> list[Any]:
        call, output = self.call
        args, kwargs = call.arguments(tensors)
        asked: list[Tensor] = []
        if self.known is None:
            returned = self.model(*args, **kwargs)
        else:
            with Answers(self.known, places=self.places) as answers:
                returned = self.model(*args, **kwargs)
            asked = answers.asked
            self.told.answers = answers
        try:
            outputs, self.returns = flat_outputs(returned, output)
        except CaptureError as error:  # torch.export would wrap it
            self.refusal = error
            raise
        return [*outputs, *asked]

    def ask(self, tensors: Sequence[Tensor]) -> None:
        """Note what forward() asks of integers, and the answers for these inputs."""
        args, kwargs = self.call[0].arguments(tensors)
        with torch.no_grad(), Answers(places=self.places) as answers:
            to_run(self.model)(*args, **kwargs)
        self.known = answers.noted

    def takes(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the model itself runs on these inputs: it may have a limit of its own, such as a largest batch."""
        args, kwargs = self.call[0].arguments(tensors)
        try:
            with torch.no_grad():
                to_run(self.model)(*args, **kwargs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            return False
        return True
