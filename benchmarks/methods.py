"""What can be timed: passes of the model, fxlrp in its ways, and its peers as their own documentation uses them.

A method is a generator function of a `Trial`, which gives `Steps`. It does what is not timed (imports, what a user
knows beforehand) and yields; then it does the set-up, which is timed once, and yields the call, which is timed in every
round. Each of these explains the predicted class of every image of the batch in one call.
"""

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec, module_from_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.resnet import BasicBlock, Bottleneck

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
    subject: Callable[[Case], tuple[nn.Module, Tensor]] = lambda case: (
        models.build(case.model), models.noise(3, case.size, case.size, batch=case.batch)
    )  # fmt: skip

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


@dataclass(frozen=True)
class Peer(Method):
    """An implementation of LRP.

    What it yields first says how it is used; its call returns the output of the model, (batch, classes), and the
    relevance of the images. ``start``: the relevance that enters for an image, or ``"one"`` for a whole call.
    """

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
