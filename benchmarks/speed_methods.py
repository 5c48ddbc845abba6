"""What is timed, by name: passes of the model, fxlrp in its ways, and the peers.

A method comes in three steps: ``begin(model, images)`` does what is not timed (imports, what a user knows
beforehand) and returns the set-up, which is timed once; that returns the call, which is timed in every round.
Each explains the predicted class of every image of the batch in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks import peers

Call = Callable[[], Any]
SetUp = Callable[[], Call]
Begin = Callable[[nn.Module, Tensor], SetUp]

YARDSTICK = "autograd"


@dataclass(frozen=True)
class Method:
    """One way to run or to explain a model.

    Attributes:
        begin: see the module.
        kind: ``"model"``, ``"fxlrp"`` or ``"peer"``.
        package: whose version goes into the row.
        channels_last: whether model and images are laid out so.
        models: a pattern; others it does not apply to.
        device: the only one it runs on, if there is one.
        rules: what it propagates by.
    """

    begin: Begin
    kind: str
    package: str = "torch"
    channels_last: bool = False
    models: str = "*"
    device: str = ""
    rules: str = ""

    def suits(self, model: str, device: str) -> bool:
        return fnmatch(model, self.models) and self.device in ("", device)


# The model's own passes --------------------------------------------------------------------------


def _forward(model: nn.Module, images: Tensor) -> SetUp:
    return lambda: torch.no_grad()(lambda: model(images))


def _forward_compiled(model: nn.Module, images: Tensor) -> SetUp:
    def set_up() -> Call:
        compiled = torch.compile(model)
        return torch.no_grad()(lambda: compiled(images))

    return set_up


def _forward_replayed(model: nn.Module, images: Tensor) -> SetUp:
    def set_up() -> Call:
        with torch.no_grad():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(images)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = model(images)

        def call() -> Tensor:
            graph.replay()
            return output

        return call

    return set_up


def _autograd(model: nn.Module, images: Tensor) -> SetUp:
    def call() -> Tensor:
        leaf = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).amax(dim=1).sum(), leaf)
        return gradient

    return lambda: call


# fxlrp -------------------------------------------------------------------------------------------


def fxlrp_method(
    *, rules: str = "conserving", channels_last: bool = False, models: str = "*", device: str = "",
    heatmap: bool = False, **options: Any,
) -> Method:  # fmt: skip
    """An explainer of fxlrp by the preset ``rules``; further options are those of ``fxlrp.compile``."""

    def begin(model: nn.Module, images: Tensor) -> SetUp:
        def set_up() -> Call:
            explainer = fxlrp.compile(model, rules, **options)
            return lambda: explainer.heatmap(images) if heatmap else explainer(images)

        return set_up

    return Method(begin, "fxlrp", "fxlrp", channels_last, models, device, rules)


# Peers -------------------------------------------------------------------------------------------


def _zennit(model: nn.Module, images: Tensor) -> SetUp:
    peers.out_of_place(model)
    canonizer, applies = peers.zennit_canonizer(model, images)

    def set_up() -> Call:
        explain = peers.zennit_set_up(model, "EpsilonPlus", canonizer if applies else None)
        return lambda: explain(images)

    return set_up


def _captum(model: nn.Module, images: Tensor) -> SetUp:
    import captum.attr  # noqa: F401

    peers.out_of_place(model)
    with torch.no_grad():
        output = model(images)

    def set_up() -> Call:
        explain = peers.captum_set_up(model, output)
        return lambda: explain(images)

    return set_up


def _autolrp(composite: bool) -> Begin:
    def begin(model: nn.Module, images: Tensor) -> SetUp:
        import autolrp  # noqa: F401

        peers.out_of_place(model)

        def set_up() -> Call:
            explain = peers.autolrp_set_up(model, composite)
            return lambda: explain(images)

        return set_up

    return begin


def _lxt(model: nn.Module, images: Tensor) -> SetUp:
    patches = peers.lxt_patches()

    def set_up() -> Call:
        explain = peers.lxt_set_up(model, patches)
        return lambda: explain(images)

    return set_up


METHODS: dict[str, Method] = {
    YARDSTICK: Method(_autograd, "model"),
    "forward": Method(_forward, "model"),
    "forward channels-last": Method(_forward, "model", channels_last=True),
    "forward inductor": Method(_forward_compiled, "model", channels_last=True),
    "forward cudagraph": Method(_forward_replayed, "model", channels_last=True, device="cuda"),
    "fxlrp eager": fxlrp_method(),
    "fxlrp channels-last": fxlrp_method(channels_last=True),
    "fxlrp inductor": fxlrp_method(channels_last=True, backend="inductor"),
    "fxlrp cudagraphs": fxlrp_method(channels_last=True, device="cuda", backend="cudagraphs"),
    "fxlrp channels-last otsuki2024": fxlrp_method(rules="otsuki2024", channels_last=True),
    "fxlrp inductor otsuki2024": fxlrp_method(rules="otsuki2024", channels_last=True, backend="inductor"),
    "fxlrp channels-last epsilon_plus": fxlrp_method(rules="epsilon_plus", channels_last=True),
    "fxlrp channels-last epsilon": fxlrp_method(rules="epsilon", channels_last=True),
    "fxlrp inductor epsilon_plus": fxlrp_method(rules="epsilon_plus", channels_last=True, backend="inductor"),
    "fxlrp inductor epsilon": fxlrp_method(rules="epsilon", channels_last=True, backend="inductor"),
    "fxlrp eager cp_lrp": fxlrp_method(rules="cp_lrp", models="vit_*"),
    "fxlrp inductor cp_lrp": fxlrp_method(rules="cp_lrp", models="vit_*", backend="inductor"),
    "zennit EpsilonPlus": Method(_zennit, "peer", "zennit", rules="z⁺ in convolutions, else ε"),
    "captum LRP": Method(_captum, "peer", "captum", rules="ε"),
    "autolrp": Method(_autolrp(composite=False), "peer", "autolrp", rules="its default, ε"),
    "autolrp composite": Method(_autolrp(composite=True), "peer", "autolrp", rules="z⁺ in convolutions, else ε"),
    "lxt": Method(_lxt, "peer", "lxt", models="vit_*", rules="CP-LRP in attention, else AttnLRP"),
}

SAME_RULES = {
    "zennit EpsilonPlus": ("fxlrp channels-last epsilon_plus", "fxlrp inductor epsilon_plus"),
    "captum LRP": ("fxlrp channels-last epsilon", "fxlrp inductor epsilon"),
    "autolrp composite": ("fxlrp channels-last epsilon_plus", "fxlrp inductor epsilon_plus"),
    "lxt": ("fxlrp eager cp_lrp", "fxlrp inductor cp_lrp"),
}
"""By peer, the methods of fxlrp with the same rules."""

ROOFS = {
    "fxlrp eager": "forward",
    "fxlrp channels-last": "forward channels-last",
    "fxlrp inductor": "forward inductor",
    "fxlrp cudagraphs": "forward cudagraph",
}
"""By method of fxlrp, the forward pass of the same kind: three of these are the least that z⁺ takes."""
