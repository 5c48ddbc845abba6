"""A call whose arguments were checked, and what remains of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fxlrp.runtime.inputs import InputSpec
from fxlrp.runtime.masks import Conditions
from fxlrp.runtime.plan import Plan


class Form(NamedTuple):
    """An input without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """That of a tensor."""
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def empty(self) -> Tensor:
        """A tensor of this form, whose values are not to be read."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def filled(self, spec: InputSpec) -> Tensor:
        """An input of this form: noise, or numbers that an embedding has."""
        if spec.integer:
            return torch.ones(self.shape, dtype=self.dtype, device=self.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.shape, generator=generator).to(device=self.device, dtype=self.dtype)


class Seen(NamedTuple):
    """What the last call looked like."""

    plan: Plan
    forms: list[Form]


@dataclass(frozen=True)
class Prepared:
    """A call whose arguments were checked.

    Attributes:
        plan: the plan that serves it.
        inputs: the tensors that the model takes, in order.
        target: (batch,), or (batch, targets) where several are explained, or ``None``: the predicted class.
        against: (batch, rivals), the classes that the target is explained against, or ``None``: as the start says.
        conditions: what to keep of the relevance inside the model; ``None``: all.
        half: whether values of half precision may come up.
        returned: what the model itself returns, flattened, where it was run; ``None``: it was compared before.
    """

    plan: Plan
    inputs: list[Tensor]
    target: Tensor | None
    against: Tensor | None
    conditions: Conditions | None
    half: bool
    returned: list[Any] | None = None

    @property
    def targets(self) -> Literal["one", "several"]:
        """Whether there is one target per item, or several."""
        return "several" if self.target is not None and self.target.dim() == 2 else "one"

    @property
    def rivals(self) -> list[Tensor]:
        """The arguments of a program that say against what."""
        return [] if self.against is None else [self.against]

    @property
    def conditions_several(self) -> bool:
        """Whether there are several conditions, and so several explanations per item."""
        return self.conditions is not None and self.conditions.several

    @property
    def autocast(self) -> bool:
        """Whether ``torch.autocast`` is on for the inputs."""
        return torch.is_autocast_enabled(self.inputs[0].device.type)
