"""Other implementations of LRP, each used as its own documentation does, and fxlrp beside them.

Each explains the predicted class. Activations are taken out of place for them, which changes no value and saves them
from errors that a user would work around in the same way.
"""

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.resnet import BasicBlock, Bottleneck

import fxlrp


@dataclass(frozen=True)
class Peer:
    """An implementation of LRP.

    Attributes:
        steps: a generator function of model and images. It does what is not timed and yields how the peer is used; then
            it does the set-up and yields what explains: from images to the output of the model (batch, classes) and the
            relevance of the images.
        package: its name on PyPI.
        start: the relevance that enters: ``"logit"``, ``"probability"``, or ``"one"`` for the whole of one call.
    """

    steps: Callable[[nn.Module, Tensor], Iterator[Any]]
    package: str
    start: str = "logit"

    def prepared(self, model: nn.Module, images: Tensor) -> Iterator[Any]:
        """The steps, of a model without activations in place."""
        for module in model.modules():
            if getattr(module, "inplace", False) is True and self.package not in ("fxlrp", "lxt"):
                module.inplace = False
        return self.steps(model, images)

    def shares(self, model: nn.Module, images: Tensor) -> tuple[Tensor, str]:
        """What arrives at the input over what entered, (batch,) in float64; and how the peer is used."""
        how, explain = self.prepared(model, images)
        # What propagates shares of one gets one image at a time.
        batches = images.split(1) if self.start == "one" else [images]
        explained = zip(*map(explain, batches), strict=True)
        output, relevance = (torch.cat(tensors).detach().double() for tensors in explained)
        arrived = relevance.flatten(1).sum(dim=1)
        return arrived if self.start == "one" else arrived / output.amax(dim=1), how


def _fxlrp(model: nn.Module, images: Tensor) -> Iterator[Any]:
    yield "preset conserving"
    explainer = fxlrp.compile(model)

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        explanation = explainer(images)
        return explanation.start[:, None], explanation.relevance

    yield explain


def _zennit(composite: str, model: nn.Module, images: Tensor) -> Iterator[Any]:
    import zennit.composites
    from zennit.attribution import Gradient

    canonizer, applies = _zennit_canonizer(model, images)
    name = type(canonizer).__name__
    yield name if applies else f"no canonizer ({name} does not apply)"
    rules = getattr(zennit.composites, composite)(canonizers=[canonizer] if applies else None)
    attributor = Gradient(model=model, composite=rules)
    attributor.__enter__()  # its hooks stay on the model

    def at_predicted(output: Tensor) -> Tensor:
        return output * nn.functional.one_hot(output.argmax(dim=1), output.shape[1])

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        output, relevance = attributor(images.clone(), at_predicted)
        return output.detach(), relevance

    yield explain


def _zennit_canonizer(model: nn.Module, images: Tensor) -> tuple[Any, bool]:
    """The canonizer of zennit for the model, and whether it applies: does something, and leaves the outputs."""
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    kind = VGGCanonizer if isinstance(model, VGG) else SequentialMergeBatchNorm
    if any(isinstance(module, BasicBlock | Bottleneck) for module in model.modules()):
        kind = ResNetCanonizer
    trial = copy.deepcopy(model)
    with torch.no_grad(), suppress(RuntimeError):
        before, done, after = model(images), kind().apply(trial), trial(images)
        same = torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
        return kind(), bool(done) and same
    return kind(), False


def _captum(model: nn.Module, images: Tensor) -> Iterator[Any]:
    from captum.attr import LRP

    with torch.no_grad():
        output = model(images)  # LRP must be told the class: finding it is not timed
    yield "default rules (ε)"
    method, target = LRP(model), output.argmax(dim=1)
    yield lambda images: (output, method.attribute(images.clone(), target=target).detach())


def _autolrp(composite: bool, model: nn.Module, images: Tensor) -> Iterator[Any]:
    """From the sum of the predicted logits: one pass for a batch, in which relevance adds up to one."""
    import autolrp

    yield "LRPConfig.composite()" if composite else "BASE"
    config = autolrp.LRPConfig.composite() if composite else autolrp.LRPConfig()

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        wrapped = autolrp.tensor(images)
        output = model(wrapped)
        output.gather(1, output.argmax(dim=1, keepdim=True)).sum().lrp(config=config)
        return output.detach().as_subclass(Tensor), wrapped.relevance.as_subclass(Tensor)

    yield explain


def _lxt(model: nn.Module, images: Tensor) -> Iterator[Any]:
    """The patches of ``lxt.efficient`` for torchvision's vision transformer, as its ``monkey_patch`` applies them.

    The package also imports its patches for language models, which fails beside versions of transformers that it does
    not know; then those for the vision transformer are imported alone.
    """
    import lxt

    try:
        importlib.import_module("lxt.efficient")
    except ImportError:
        folder = Path(lxt.__file__).parent / "efficient"
        for name, path in (("lxt.efficient", folder), ("lxt.efficient.models", folder / "models")):
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(path)]
    patches = importlib.import_module("lxt.efficient.models.vit_torch").cp_LRP
    yield "cp_LRP"
    for target, patch in patches.items():
        patch(target)

    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        output = model(leaf)
        (gradient,) = torch.autograd.grad(output.amax(dim=1).sum(), leaf)
        return output.detach(), leaf.detach() * gradient

    yield explain


PEERS = {
    "fxlrp": Peer(_fxlrp, "fxlrp", "probability"),
    "autolrp": Peer(partial(_autolrp, False), "autolrp", "one"),
    "autolrp composite": Peer(partial(_autolrp, True), "autolrp", "one"),
    "zennit EpsilonPlus": Peer(partial(_zennit, "EpsilonPlus"), "zennit"),
    "zennit EpsilonPlusFlat": Peer(partial(_zennit, "EpsilonPlusFlat"), "zennit"),
    "captum": Peer(_captum, "captum"),
    "lxt": Peer(_lxt, "lxt"),
}
