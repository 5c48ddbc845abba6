"""What is timed, by name: passes of the model, fxlrp in its ways, and the peers.

A method is a generator function of a `Trial`. It does what is not timed (imports, what a user knows beforehand) and
yields; then it does the set-up, which is timed once, and yields the call, which is timed in every round. Each of these
explains the predicted class of every image of the batch in one call.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks.peers import PEERS

YARDSTICK = "autograd"
CHANNELS_LAST = {"channels_last": True}
INDUCTOR = {"channels_last": True, "backend": "inductor"}


@dataclass(frozen=True)
class Case:
    """What is explained: ``batch`` images of ``size`` × ``size`` to a model, in a variant that the benchmark knows."""

    model: str
    batch: int
    size: int
    variant: str = ""


@dataclass
class Trial:
    """A case in the process of one method; what the method puts into ``facts`` are columns of its row."""

    case: Case
    model: nn.Module
    images: Tensor
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One way to run or to explain a model.

    ``steps``: see the module; ``kind``: "model", "fxlrp" or "peer"; ``package``: whose version goes into the row;
    ``channels_last``: whether model and images are laid out so; ``models`` and ``device``: a pattern, and the only
    device if there is one, of what the method applies to; ``parts``: whether the call returns seconds by part, which
    are told instead of its own.
    """

    steps: Callable[[Trial], Iterator[Any]]
    kind: str
    package: str = "torch"
    channels_last: bool = False
    models: str = "*"
    device: str = ""
    parts: bool = False

    def suits(self, model: str, device: str) -> bool:
        return fnmatch(model, self.models) and self.device in ("", device)


def _forward(trial: Trial, compiled: bool = False) -> Iterator[Any]:
    yield
    model = torch.compile(trial.model) if compiled else trial.model
    yield torch.no_grad()(lambda: model(trial.images))


def _forward_replayed(trial: Trial) -> Iterator[Any]:
    yield
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                trial.model(trial.images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = trial.model(trial.images)
    yield lambda: (graph.replay(), output)


def _autograd(trial: Trial) -> Iterator[Any]:
    def call() -> Tensor:
        leaf = trial.images.detach().requires_grad_()
        return torch.autograd.grad(trial.model(leaf).amax(dim=1).sum(), leaf)[0]

    yield
    yield call


def fxlrp_method(
    preset: str = "conserving", channels_last: bool = False, models: str = "*", device: str = "",
    heatmap: bool = False, **options: Any,
) -> Method:  # fmt: skip
    """An explainer of fxlrp; further options are those of ``fxlrp.compile``."""

    def steps(trial: Trial) -> Iterator[Any]:
        yield
        explainer = fxlrp.compile(trial.model, preset, **options)
        explain = explainer.heatmap if heatmap else explainer
        yield lambda: explain(trial.images)

    return Method(steps, "fxlrp", "fxlrp", channels_last, models, device)


def _peer(name: str, models: str = "*") -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        prepared = PEERS[name].prepared(trial.model, trial.images)
        yield next(prepared)
        explain = next(prepared)
        yield lambda: explain(trial.images)

    return Method(steps, "peer", PEERS[name].package, models=models)


METHODS: dict[str, Method] = {
    YARDSTICK: Method(_autograd, "model"),
    "forward": Method(_forward, "model"),
    "forward channels-last": Method(_forward, "model", channels_last=True),
    "forward inductor": Method(partial(_forward, compiled=True), "model", channels_last=True),
    "forward cudagraph": Method(_forward_replayed, "model", channels_last=True, device="cuda"),
    "fxlrp eager": fxlrp_method(),
    "fxlrp channels-last": fxlrp_method(**CHANNELS_LAST),
    "fxlrp inductor": fxlrp_method(**INDUCTOR),
    "fxlrp cudagraphs": fxlrp_method(**CHANNELS_LAST, device="cuda", backend="cudagraphs"),
    "fxlrp channels-last evidence": fxlrp_method("evidence", **CHANNELS_LAST),
    "fxlrp channels-last otsuki2024": fxlrp_method("otsuki2024", **CHANNELS_LAST),
    "fxlrp inductor otsuki2024": fxlrp_method("otsuki2024", **INDUCTOR),
    "fxlrp channels-last epsilon_plus": fxlrp_method("epsilon_plus", **CHANNELS_LAST),
    "fxlrp channels-last epsilon": fxlrp_method("epsilon", **CHANNELS_LAST),
    "fxlrp inductor epsilon_plus": fxlrp_method("epsilon_plus", **INDUCTOR),
    "fxlrp inductor epsilon": fxlrp_method("epsilon", **INDUCTOR),
    "fxlrp eager cp_lrp": fxlrp_method("cp_lrp", models="vit_*"),
    "fxlrp inductor cp_lrp": fxlrp_method("cp_lrp", models="vit_*", backend="inductor"),
    "zennit EpsilonPlus": _peer("zennit EpsilonPlus"),
    "captum LRP": _peer("captum"),
    "autolrp": _peer("autolrp"),
    "autolrp composite": _peer("autolrp composite"),
    "lxt": _peer("lxt", models="vit_*"),
}
