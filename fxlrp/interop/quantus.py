"""Explanations for Quantus, the toolkit that measures explanations; the package itself is not needed here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxlrp.capture import check_model
from fxlrp.common.errors import InputError
from fxlrp.compiler import compile
from fxlrp.explainer import Explainer
from fxlrp.presets import Preset
from fxlrp.rules.rule import Rule
from fxlrp.rules.starts import Start


def quantus_explain(
    model: nn.Module, inputs: npt.ArrayLike, targets: npt.ArrayLike, *,
    preset: str | Preset = "conserving", rules: Mapping[Any, Rule] | None = None, start: str | Start = "probability",
    sum_channels: bool = True, device: Any = None, **options: Any,
) -> npt.NDArray[Any]:  # fmt: skip
    """Relevance as Quantus asks for it: ``metric(…, explain_func=fxlrp.quantus_explain)``.

    A model is compiled once, and later updates of its weights are followed, as metrics that randomise
    them need. What is kept of a model goes when the model goes.

    Args:
        model: a module in eval mode. It is not changed.
        inputs: (batch, ...), channels first; converted to the model's precision.
        targets: (batch,), the classes to explain, or one class for all.
        preset: as for :func:`fxlrp.compile`; Quantus hands ``explain_func_kwargs`` on to here.
        rules: as there.
        start: as there.
        sum_channels: whether to give (batch, 1, ...), the sum over the channels of images and series.
        device: where to compute; ``None``: where the model is.
        **options: what else :func:`fxlrp.compile` takes.

    Returns:
        (batch, ...) like the inputs, or one channel of them.

    Raises:
        FxlrpError: as for :func:`fxlrp.compile` and for a call of the explainer.
    """
    check_model(model)
    kept = _KEPT.get(model)
    if kept is None or not kept.is_of(model):
        kept = _KEPT[model] = _Kept(model)
    like = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))
    place = torch.device(device or like.device)
    options |= {"preset": preset, "rules": rules, "start": start}
    explainer = kept.explainer(model, options, None if place == like.device else place)

    # Copied, for torch takes no array that is read-only or runs backwards.
    x = torch.from_numpy(np.asarray(inputs).copy()).to(place)
    x = x.to(like.dtype) if x.is_floating_point() else x
    explanation = explainer(x, target=torch.from_numpy(np.asarray(targets).copy()).to(place))
    if isinstance(explanation.relevance, tuple):
        raise InputError(f"Quantus explains models of one input, not of {', '.join(explanation.inputs)}")
    relevance = explanation.relevance.detach().cpu()
    if sum_channels and relevance.dim() > 2:
        relevance = relevance.sum(dim=1, keepdim=True)
    found: npt.NDArray[Any] = relevance.numpy()
    return found


class _Kept:
    """The explainers of one model, which hold on to its tensors but not to the model.

    An explainer holds its model, and so could never be kept only as long as that: these are explainers of
    a copy of the modules that shares the tensors.
    """

    most = 8  # so that a callable start that is made anew at each call does not fill the memory

    def __init__(self, model: nn.Module) -> None:
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.modules = [ref(module) for module in model.modules()]
        self.copy = copy.deepcopy(model, shared)
        self.explainers: list[tuple[dict[str, Any], Explainer]] = []

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model still has the modules that it had."""
        modules = list(model.modules())
        return len(modules) == len(self.modules) and all(r() is m for r, m in zip(self.modules, modules, strict=True))

    def explainer(self, model: nn.Module, options: dict[str, Any], device: torch.device | None) -> Explainer:
        """The explainer with these options of :func:`fxlrp.compile`, of the model's weights as they are now."""
        for ours, theirs in zip(self.copy.modules(), model.modules(), strict=True):
            ours._parameters.update(theirs._parameters)  # those that were replaced; the rest is shared
            ours._buffers.update(theirs._buffers)
        wanted = {**options, "device": device}
        for known, explainer in self.explainers:
            if known == wanted:
                return explainer
        explainer = compile(self.copy, **options)
        self.explainers = [*self.explainers, (wanted, explainer.to(device) if device else explainer)][-self.most :]
        return explainer


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()
