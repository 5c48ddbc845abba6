"""What the sweep explains: a model with weights that are worth explaining, its inputs, and where relevance starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2


@dataclass(frozen=True)
class Subject:
    """A model, what it takes, and what to explain of it.

    Attributes:
        model: in eval mode, with random weights that are always the same.
        inputs, keywords: a batch of its inputs.
        start: as ``fxlrp.compile`` takes it; ``None``: the probability of the predicted class, or
            for an output of another shape its magnitude.
        output: which of several outputs, as ``fxlrp.compile`` takes it.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...] = ()
    keywords: dict[str, Tensor] = field(default_factory=dict)
    start: Any = None
    output: Any = None

    def to(self, dtype: torch.dtype) -> Subject:
        """The same in another precision; integers stay integers."""
        return replace(
            self,
            model=self.model.to(dtype),
            inputs=tuple(_cast(value, dtype) for value in self.inputs),
            keywords={name: _cast(value, dtype) for name, value in self.keywords.items()},
        )

    def run(self) -> Any:
        """What the model returns for the inputs."""
        with torch.no_grad():
            return self.model(*self.inputs, **self.keywords)


# Starts ------------------------------------------------------------------------------------------


def magnitude(output: Tensor, target: Tensor | None) -> Tensor:
    """Of features: each one's magnitude."""
    return output.abs()


def class_map(output: Tensor, target: Tensor | None) -> Tensor:
    """Of (batch, classes, height, width): the probabilities of the class that most of the image shows."""
    probabilities = output.softmax(dim=1)
    chosen = probabilities.mean(dim=(2, 3)).argmax(dim=1)
    return probabilities * nn.functional.one_hot(chosen, output.shape[1])[:, :, None, None]


def next_token(output: Tensor, target: Tensor | None) -> Tensor:
    """Of (batch, tokens, vocabulary): the probability of the token predicted after the last one."""
    probabilities, chosen = output[:, -1].softmax(dim=1).max(dim=1)
    start = torch.zeros_like(output)
    start[torch.arange(len(output)), -1, chosen] = probabilities
    return start


# Weights and inputs ------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 1, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def usable(model: nn.Module, *shape: int) -> nn.Module:
    """Random weights made fit to be explained: nothing silent, batch norms measured on noise; eval mode."""
    _wake(model)
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the batches
        norm.train()
    with torch.no_grad():
        for seed in (2, 3):
            model(noise(*shape, seed=seed, batch=4))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _wake(model: nn.Module) -> None:
    """Heads, tokens and residual branches that start at zero would leave nothing to propagate through."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or not parameter.is_floating_point() or parameter.any():
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=0.01)
            else:
                parameter.fill_(1)  # the scale of a norm or of a branch


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
