"""Other implementations of LRP, each used as its own documentation does.

Each explains the predicted class and says what it started from, so that what reaches the input can be
held against it. Activations are taken out of place for them, which changes no value and saves them from
errors that a user would work around in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp


@dataclass(frozen=True)
class Share:
    """What entered and what arrived, (batch,) each.

    Attributes:
        start: the relevance that entered at the output.
        relevance: its sum at the input.
        name: what the start is.
        how: settings worth telling.
    """

    start: Tensor
    relevance: Tensor
    name: str = "logit"
    how: str = ""


def _fxlrp(model: nn.Module, images: Tensor) -> Share:
    explanation = fxlrp.compile(model)(images)
    return Share(explanation.start.double(), _sums(explanation.relevance), "probability", "preset conserving")


def _autolrp(composite: bool) -> Callable[[nn.Module, Tensor], Share]:
    def explain(model: nn.Module, images: Tensor) -> Share:
        import autolrp

        config = autolrp.LRPConfig.composite() if composite else autolrp.LRPConfig()
        out_of_place(model)
        sums = []
        for i in range(len(images)):
            wrapped = autolrp.tensor(images[i : i + 1])
            output = model(wrapped)
            # Whatever the logit is, it propagates shares of one.
            output[0, int(output.argmax())].lrp(config=config)
            sums.append(wrapped.relevance.as_subclass(Tensor).double().sum())
        relevance = torch.stack(sums)
        return Share(torch.ones_like(relevance), relevance, "one", "LRPConfig.composite()" if composite else "BASE")

    return explain


def _zennit(composite: str) -> Callable[[nn.Module, Tensor], Share]:
    def explain(model: nn.Module, images: Tensor) -> Share:
        import zennit.composites
        from zennit.attribution import Gradient

        out_of_place(model)
        canonizer, applied = _canonizer(model, images)
        rules = getattr(zennit.composites, composite)(canonizers=[canonizer] if applied else None)
        with Gradient(model=model, composite=rules) as attributor:
            output, relevance = attributor(images.clone(), _at_predicted)
        how = type(canonizer).__name__ if applied else f"no canonizer ({type(canonizer).__name__} does not apply)"
        return Share(output.detach().double().amax(dim=1), _sums(relevance), how=how)

    return explain


def _captum(model: nn.Module, images: Tensor) -> Share:
    from captum.attr import LRP

    out_of_place(model)
    with torch.no_grad():
        start, target = model(images).max(dim=1)
    return Share(start.double(), _sums(LRP(model).attribute(images.clone(), target=target)), how="default rules (ε)")


def _canonizer(model: nn.Module, images: Tensor) -> tuple[Any, bool]:
    """The canonizer of zennit for the model, and whether it applies: does something, and leaves the outputs."""
    from torchvision.models import VGG, ResNet
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    kind = {ResNet: ResNetCanonizer, VGG: VGGCanonizer}.get(type(model), SequentialMergeBatchNorm)
    trial = copy.deepcopy(model)
    with torch.no_grad():
        before = model(images)
        try:
            done = kind().apply(trial)
            after = trial(images)
        except RuntimeError:
            return kind(), False
    return kind(), bool(done) and torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def _at_predicted(output: Tensor) -> Tensor:
    return output * nn.functional.one_hot(output.argmax(dim=1), output.shape[1])


def _sums(relevance: Tensor) -> Tensor:
    return relevance.detach().double().flatten(1).sum(dim=1)


def out_of_place(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


PEERS: dict[str, Callable[[nn.Module, Tensor], Share]] = {
    "fxlrp": _fxlrp,
    "autolrp": _autolrp(composite=False),
    "autolrp composite": _autolrp(composite=True),
    "zennit EpsilonPlus": _zennit("EpsilonPlus"),
    "zennit EpsilonPlusFlat": _zennit("EpsilonPlusFlat"),
    "captum": _captum,
}
"""By name, fxlrp itself among them for the comparison."""
