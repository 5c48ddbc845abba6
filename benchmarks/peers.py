"""Other implementations of LRP, each used as its own documentation does.

Each explains the predicted class and says what it started from, so that what reaches the input can be
held against it. Activations are taken out of place for them, which changes no value and saves them from
errors that a user would work around in the same way.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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


# Set-up: what has to be done once, and returns what explains images --------------------------------

Explain = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From images to the output of the model and the relevance of the images."""


def zennit_set_up(model: nn.Module, composite: str, canonizer: Any | None) -> Explain:
    """Attach a composite of zennit; its hooks stay on the model."""
    import zennit.composites
    from zennit.attribution import Gradient

    rules = getattr(zennit.composites, composite)(canonizers=None if canonizer is None else [canonizer])
    attributor = Gradient(model=model, composite=rules)
    attributor.__enter__()

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        output, relevance = attributor(images.clone(), _at_predicted)
        return output.detach(), relevance

    return explain


def captum_set_up(model: nn.Module, output: Tensor) -> Explain:
    """LRP of Captum, which must be told the class: that of ``output``, what the model returns for the images."""
    from captum.attr import LRP

    method, target = LRP(model), output.argmax(dim=1)
    return lambda images: (output, method.attribute(images.clone(), target=target).detach())


def autolrp_set_up(model: nn.Module, composite: bool) -> Explain:
    """From the sum of the predicted logits: one pass for a batch, in which relevance adds up to one."""
    import autolrp

    config = autolrp.LRPConfig.composite() if composite else autolrp.LRPConfig()

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        wrapped = autolrp.tensor(images)
        output = model(wrapped)
        output.gather(1, output.argmax(dim=1, keepdim=True)).sum().lrp(config=config)
        return output.detach().as_subclass(Tensor), wrapped.relevance.as_subclass(Tensor)

    return explain


def lxt_set_up(model: nn.Module, patches: dict[Any, Callable[[Any], bool]]) -> Explain:
    """Patch the classes of which torchvision's vision transformer is made; then relevance is gradient × input."""
    for target, patch in patches.items():
        patch(target)

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        output = model(leaf)
        (gradient,) = torch.autograd.grad(output.amax(dim=1).sum(), leaf)
        return output.detach(), leaf.detach() * gradient

    return explain


def lxt_patches() -> dict[Any, Callable[[Any], bool]]:
    """The patches of ``lxt.efficient`` for torchvision's vision transformer.

    They are what its ``monkey_patch`` applies. The package also imports its patches for language models, which
    fails beside versions of transformers that it does not know; then those for the vision transformer are
    imported alone.
    """
    import lxt

    try:
        importlib.import_module("lxt.efficient")
    except ImportError:
        folder = Path(lxt.__file__).parent / "efficient"
        for name, path in (("lxt.efficient", folder), ("lxt.efficient.models", folder / "models")):
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(path)]
    patches: dict[Any, Callable[[Any], bool]] = importlib.import_module("lxt.efficient.models.vit_torch").cp_LRP
    return patches


# Shares: what of the start reaches the input -----------------------------------------------------


def _fxlrp(model: nn.Module, images: Tensor) -> Share:
    explanation = fxlrp.compile(model)(images)
    return Share(explanation.start.double(), _sums(explanation.relevance), "probability", "preset conserving")


def _autolrp(composite: bool) -> Callable[[nn.Module, Tensor], Share]:
    def share(model: nn.Module, images: Tensor) -> Share:
        out_of_place(model)
        explain = autolrp_set_up(model, composite)
        # One at a time: whatever the logit is, it propagates shares of one.
        relevance = torch.cat([_sums(explain(images[i : i + 1])[1]) for i in range(len(images))])
        return Share(torch.ones_like(relevance), relevance, "one", "LRPConfig.composite()" if composite else "BASE")

    return share


def _zennit(composite: str) -> Callable[[nn.Module, Tensor], Share]:
    def share(model: nn.Module, images: Tensor) -> Share:
        out_of_place(model)
        canonizer, applied = zennit_canonizer(model, images)
        output, relevance = zennit_set_up(model, composite, canonizer if applied else None)(images)
        how = type(canonizer).__name__ if applied else f"no canonizer ({type(canonizer).__name__} does not apply)"
        return Share(output.double().amax(dim=1), _sums(relevance), how=how)

    return share


def _captum(model: nn.Module, images: Tensor) -> Share:
    out_of_place(model)
    with torch.no_grad():
        output = model(images)
    _, relevance = captum_set_up(model, output)(images)
    return Share(output.double().amax(dim=1), _sums(relevance), how="default rules (ε)")


def zennit_canonizer(model: nn.Module, images: Tensor) -> tuple[Any, bool]:
    """The canonizer of zennit for the model, and whether it applies: does something, and leaves the outputs."""
    from torchvision.models import VGG
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    kind: Any = VGGCanonizer if isinstance(model, VGG) else SequentialMergeBatchNorm
    if any(isinstance(module, BasicBlock | Bottleneck) for module in model.modules()):
        kind = ResNetCanonizer
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
