"""Explanations for Quantus, the toolkit that measures explanations; the package itself is not needed here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxlrp.capture import check_model
from fxlrp.common.errors import InputError

Compile = Callable[..., Any]
"""What compiles a model into an explainer: :func:`fxlrp.compile`."""


def explain(
    compile: Compile, model: nn.Module, inputs: npt.ArrayLike, targets: npt.ArrayLike, *, sum_channels: bool,
    device: Any, options: Mapping[str, Any],
) -> npt.NDArray[Any]:  # fmt: skip
    """What :func:`fxlrp.quantus_explain` does, by ``compile(model, **options)``."""
    check_model(model)
    kept = _KEPT.get(model)
    if kept is None or not kept.is_of(model):
        kept = _KEPT[model] = _Kept(model)
    like = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))
    target_device = torch.device(device or like.device)
    explainer = kept.explainer(compile, model, options, None if target_device == like.device else target_device)

    # Copied, because torch takes no array that is read-only or runs backwards.
    x = torch.from_numpy(np.asarray(inputs).copy()).to(target_device)
    x = x.to(like.dtype) if x.is_floating_point() else x
    explanation = explainer(x, target=torch.from_numpy(np.asarray(targets).copy()).to(target_device))
    if isinstance(explanation.relevance, tuple):
        raise InputError(f"Quantus explains models of one input, not of {', '.join(explanation.inputs)}")
    relevance = explanation.relevance.detach().cpu()
    if sum_channels and relevance.dim() > 2:
        relevance = relevance.sum(dim=1, keepdim=True)
    array: npt.NDArray[Any] = relevance.numpy()
    return array


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
        self.explainers: list[tuple[dict[str, Any], Any]] = []

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model still has the modules that it had."""
        modules = list(model.modules())
        return len(modules) == len(self.modules) and all(r() is m for r, m in zip(self.modules, modules, strict=True))

    def explainer(
        self, compile: Compile, model: nn.Module, options: Mapping[str, Any], device: torch.device | None
    ) -> Any:
        """The explainer with these options of :func:`fxlrp.compile`, of the model's weights as they are now."""
        for ours, theirs in zip(self.copy.modules(), model.modules(), strict=True):
            ours._parameters.update(theirs._parameters)  # those that were replaced; the rest is shared
            ours._buffers.update(theirs._buffers)
        wanted = {**options, "device": device}
        for compiled_with, explainer in self.explainers:
            if compiled_with == wanted:
                return explainer
        explainer = compile(self.copy, **options)
        self.explainers = [*self.explainers, (wanted, explainer.to(device) if device else explainer)][-self.most :]
        return explainer


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()
