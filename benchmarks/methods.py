"""What can be timed: passes of the model, and fxlrp in its ways; `benchmarks.peers` has the others.

A method is a generator function of a `Trial`, which gives `Steps`. It does what is not timed (imports, what a user
knows beforehand) and yields; then it does the set-up, which is timed once, and yields the call, which is timed in every
round. Each of these explains the predicted class of every image of the batch in one call.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks import models

Steps = Iterator[Any]
YARDSTICK = "autograd"
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """What is explained: ``batch`` images of ``size`` × ``size`` to a model, in a variant that the benchmark knows."""

    model: str
    batch: int
    size: int
    variant: str = ""


def subject(case: Case) -> tuple[nn.Module, Tensor]:
    """The model and the images of a case."""
    return models.build(case.model), models.noise(3, case.size, case.size, batch=case.batch)


@dataclass
class Trial:
    """A model and its images in the process of one method; what that puts into ``facts`` are columns of its row."""

    model: nn.Module
    images: Tensor
    variant: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One way to run or to explain a model.

    ``steps``: see the module; ``package``: whose work is timed, and whose version goes into the row; ``channels_last``:
    whether model and images are laid out so; ``models`` and ``device``: a pattern, and the only device if there is one,
    of what the method applies to; ``parts``: whether the call returns seconds by part, which are told instead of its
    own; ``subject`` makes the model and the images of a case.
    """

    steps: Callable[[Trial], Steps]
    package: str = "torch"
    channels_last: bool = False
    models: str = "*"
    device: str = ""
    parts: bool = False
    subject: Callable[[Case], tuple[nn.Module, Tensor]] = subject

    def suits(self, model: str, device: str) -> bool:
        return fnmatch(model, self.models) and self.device in ("", device)


def forward(trial: Trial, compiled: bool = False) -> Steps:
    yield
    model = torch.compile(trial.model) if compiled else trial.model
    yield torch.no_grad()(lambda: model(trial.images))


def forward_replayed(trial: Trial) -> Steps:
    yield
    with torch.no_grad():
        replay = torch.cuda.make_graphed_callables(trial.model.forward, (trial.images,))  # takes no parameters
    yield torch.no_grad()(lambda: replay(trial.images))


def autograd(trial: Trial) -> Steps:
    def call() -> Tensor:
        leaf = trial.images.detach().requires_grad_()
        return torch.autograd.grad(trial.model(leaf).amax(dim=1).sum(), leaf)[0]

    yield
    yield call


def fxlrp_method(preset: str = "conserving", channels_last: bool = False, models: str = "*", device: str = "",
                 **options: Any) -> Method:  # fmt: skip
    """An explainer of fxlrp; further options are those of ``fxlrp.compile``."""

    def steps(trial: Trial) -> Steps:
        yield
        explainer = fxlrp.compile(trial.model, preset, **options)
        yield lambda: explainer(trial.images)

    return Method(steps, "fxlrp", channels_last, models, device)
