"""Other implementations of LRP, each used as its own documentation does, and fxlrp beside them.

They are methods as in `benchmarks.methods`: what is yielded first says how the implementation is used; the call returns
the output of the model, (batch, classes), and the relevance of the images. Each explains the predicted class.
"""

import copy
import importlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec, module_from_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.resnet import BasicBlock, Bottleneck

import fxlrp
from benchmarks.methods import Method, Steps, Trial


@dataclass(frozen=True)
class Peer(Method):
    """An implementation of LRP; ``start``: the relevance that enters for an image, or ``"one"`` for a whole call."""

    start: str = "logit"

    def shares(self, model: nn.Module, images: Tensor) -> tuple[Tensor, str]:
        """What arrives at the input over what entered, (batch,) in float64; and how the peer is used."""
        explained = []
        # What propagates shares of one gets one image at a time.
        for some in images.split(1) if self.start == "one" else [images]:
            how, call = self.steps(Trial(model, some))
            explained.append(call())
        output, relevance = (torch.cat(tensors).detach().double() for tensors in zip(*explained, strict=True))
        arrived = relevance.flatten(1).sum(dim=1)
        return arrived if self.start == "one" else arrived / output.amax(dim=1), how


def _out_of_place(model: nn.Module) -> nn.Module:
    """Activations changed so: no value changes, and it saves from errors that a user would work around likewise."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    return model


def _fxlrp(trial: Trial) -> Steps:
    yield "preset conserving"
    explainer = fxlrp.compile(trial.model)

    def explain() -> tuple[Tensor, Tensor]:
        explanation = explainer(trial.images)
        return explanation.start[:, None], explanation.relevance

    yield explain


def _zennit(trial: Trial, composite: str) -> Steps:
    import zennit.composites
    from zennit.attribution import Gradient

    how, canonizers = _zennit_canonizers(_out_of_place(trial.model), trial.images)
    yield how
    rules = getattr(zennit.composites, composite)(canonizers=canonizers)
    attributor = Gradient(model=trial.model, composite=rules)
    attributor.__enter__()  # its hooks stay on the model

    def at_predicted(output: Tensor) -> Tensor:
        return output * nn.functional.one_hot(output.argmax(dim=1), output.shape[1])

    def explain() -> tuple[Tensor, Tensor]:
        output, relevance = attributor(trial.images.clone(), at_predicted)
        return output.detach(), relevance

    yield explain


def _zennit_canonizers(model: nn.Module, images: Tensor) -> tuple[str, list[Any] | None]:
    """The canonizer of zennit for the model if it applies: does something, and leaves the outputs."""
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    kind = VGGCanonizer if isinstance(model, VGG) else SequentialMergeBatchNorm
    if any(isinstance(module, BasicBlock | Bottleneck) for module in model.modules()):
        kind = ResNetCanonizer
    trial = copy.deepcopy(model)
    with torch.no_grad(), suppress(RuntimeError):
        before, done, after = model(images), kind().apply(trial), trial(images)
        if done and torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            return kind.__name__, [kind()]
    return f"no canonizer ({kind.__name__} does not apply)", None


def _captum(trial: Trial) -> Steps:
    from captum.attr import LRP

    with torch.no_grad():
        output = _out_of_place(trial.model)(trial.images)  # LRP must be told the class: finding it is not timed
    yield "default rules (ε)"
    method, target = LRP(trial.model), output.argmax(dim=1)
    yield lambda: (output, method.attribute(trial.images.clone(), target=target).detach())


def _autolrp(trial: Trial, composite: bool) -> Steps:
    """From the sum of the predicted logits: one pass for a batch, in which relevance adds up to one."""
    import autolrp

    model = _out_of_place(trial.model)
    yield "LRPConfig.composite()" if composite else "BASE"
    config = autolrp.LRPConfig.composite() if composite else autolrp.LRPConfig()

    def explain() -> tuple[Tensor, Tensor]:
        wrapped = autolrp.tensor(trial.images)
        output = model(wrapped)
        output.gather(1, output.argmax(dim=1, keepdim=True)).sum().lrp(config=config)
        return output.detach().as_subclass(Tensor), wrapped.relevance.as_subclass(Tensor)

    yield explain


def _lxt(trial: Trial) -> Steps:
    """The patches of ``lxt.efficient`` for torchvision's vision transformer, as its ``monkey_patch`` applies them.

    The package also imports its patches for language models, which fails beside versions of transformers that it does
    not know; then those for the vision transformer are imported alone.
    """
    with suppress(ImportError):
        importlib.import_module("lxt.efficient")
    for name in ("lxt.efficient", "lxt.efficient.models"):
        sys.modules.setdefault(name, module_from_spec(find_spec(name)))
    patches = importlib.import_module("lxt.efficient.models.vit_torch").cp_LRP
    yield "cp_LRP"
    for target, patch in patches.items():
        patch(target)

    def explain() -> tuple[Tensor, Tensor]:
        leaf = trial.images.clone().requires_grad_()
        output = trial.model(leaf)
        (gradient,) = torch.autograd.grad(output.amax(dim=1).sum(), leaf)
        return output.detach(), leaf.detach() * gradient

    yield explain


PEERS = {
    "fxlrp": Peer(_fxlrp, "fxlrp", start="probability"),
    "autolrp": Peer(partial(_autolrp, composite=False), "autolrp", start="one"),
    "autolrp composite": Peer(partial(_autolrp, composite=True), "autolrp", start="one"),
    "zennit EpsilonPlus": Peer(partial(_zennit, composite="EpsilonPlus"), "zennit"),
    "zennit EpsilonPlusFlat": Peer(partial(_zennit, composite="EpsilonPlusFlat"), "zennit"),
    "captum": Peer(_captum, "captum"),
    "lxt": Peer(_lxt, "lxt", models="vit_*"),
}
