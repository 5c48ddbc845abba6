"""Models by name, for the command line: the module, its preprocessing and the names of its classes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from fxlrp.common.errors import FxlrpError, WeightsError
from fxlrp.common.extras import require
from fxlrp.loading.checkpoints import class_count, fit, read_checkpoint
from fxlrp.loading.images import Preprocess, imagenet_preprocess


class ModelWarning(UserWarning):
    """A property of a model that changes what its explanations mean."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to use it.

    Attributes:
        model: the module.
        preprocess: from an RGB Pillow image to the model's input, (channels, height, width);
            ``None``: the usual one for ImageNet.
        classes: the classes' names in the order of the output; ``None``: classes have only numbers.
    """

    model: nn.Module
    preprocess: Preprocess | None = None
    classes: Sequence[str] | None = None


def load_model(spec: str, weights: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Build the model that a specification names, in eval mode. Nothing is downloaded.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``python:package.module:callable``. The
            callable takes no arguments and returns the module, ``(module, preprocess)`` or a
            :class:`LoadedModel`; modules in the current folder can be named too.
        weights: a checkpoint file, written by ``torch.save`` or safetensors: a state dict, bare or
            under a key such as ``"state_dict"``. Without one a torchvision or timm model has
            random weights, the same at every call.

    Returns:
        The model; ``preprocess`` is never ``None``.

    Warns:
        ModelWarning: the weights are random, or the preprocessing is a guess.

    Raises:
        WeightsError: the specification is unknown, the callable fails, or the checkpoint
            cannot be read or does not fit.
        MissingExtraError: timm or safetensors is needed and not installed.
    """
    source, _, name = spec.partition(":")
    if source not in _SOURCES or not name:
        raise WeightsError(f"--model {spec!r} is none of torchvision:NAME, timm:NAME, python:package.module:callable")
    # The checkpoint is read first, because building a model may take long.
    state = None if weights is None else read_checkpoint(weights)
    loaded = _SOURCES[source](name, state)
    if state is not None:
        fit(loaded.model, state, weights)
    elif source != "python":
        warnings.warn(
            f"{spec} has random weights: what is explained is an untrained network. "
            "Give a checkpoint to explain a trained one (--weights FILE)",
            ModelWarning, stacklevel=2,
        )  # fmt: skip
    if loaded.preprocess is None:
        warnings.warn(
            f"{spec} does not say how its input is made: taken as ImageNet's (short side 256, middle 224 × 224, "
            "ImageNet mean and standard deviation)",
            ModelWarning, stacklevel=2,
        )  # fmt: skip
        loaded = replace(loaded, preprocess=imagenet_preprocess())
    loaded.model.eval()
    return loaded


def imagenet_classes() -> list[str]:
    """The names of ImageNet's 1,000 classes, in order."""
    return list(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])


def _torchvision(name: str, state: dict[str, Any] | None) -> LoadedModel:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        if name in torchvision.models.list_models():
            raise WeightsError(f"torchvision:{name} is no classifier of images in floating point")
        raise WeightsError(_unknown("torchvision", name, names))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their trained weights expect another normalisation than torchvision's transforms give.
        # This flag converts it; torchvision sets it when it loads the weights itself.
        options = {"transform_input": True, "init_weights": True}
    model = _build(partial(torchvision.models.get_model, name, weights=None, **options), state)
    classes = list(weights.meta["categories"])
    return LoadedModel(model, weights.transforms(), classes if class_count(model) == len(classes) else None)


def _timm(name: str, state: dict[str, Any] | None) -> LoadedModel:
    timm = require("timm", "timm")
    # timm would look up names such as "hf-hub:..." on the network.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise WeightsError(_unknown("timm", name, timm.list_models()))
    try:
        model = _build(partial(timm.create_model, name, pretrained=False), state)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"timm cannot build {name!r}: {error}") from error
    return LoadedModel(model, transform, imagenet_classes() if class_count(model) == 1000 else None)


def import_callable(target: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules in the current folder can be named too.

    Raises:
        WeightsError: there is no such function.
    """
    module_name, _, function = target.partition(":")
    if not module_name or not function:
        raise WeightsError(f"{target} does not name a callable: write python:package.module:callable")
    with _user_code(target):
        return _attribute(importlib.import_module(module_name), function, module_name)


@contextmanager
def _user_code(target: str) -> Iterator[None]:
    """Run user code: modules in the current folder can be imported, and an exception becomes a ``WeightsError``."""
    try:
        with _current_folder_importable():
            yield
    except FxlrpError:
        raise
    except ModuleNotFoundError as error:
        raise WeightsError(f"{target} cannot be imported from here: {error}") from error
    except Exception as error:
        raise WeightsError(f"{target} failed: {type(error).__name__}: {error}") from error


def _python(target: str, state: dict[str, Any] | None) -> LoadedModel:
    function = import_callable(target)
    with _user_code(target):
        made = function()
    if isinstance(made, LoadedModel):
        loaded = made
    elif isinstance(made, tuple) and len(made) == 2:
        loaded = LoadedModel(*made)
    else:
        loaded = LoadedModel(made)
    if not isinstance(loaded.model, nn.Module):
        wanted = "a module, (module, preprocess) or a LoadedModel"
        raise WeightsError(f"python:{target} returned {type(made).__name__}; it must return {wanted}")
    if loaded.preprocess is not None and not callable(loaded.preprocess):
        raise WeightsError(f"python:{target}: its preprocessing is {type(loaded.preprocess).__name__}, not a callable")
    return loaded


_SOURCES: dict[str, Callable[[str, dict[str, Any] | None], LoadedModel]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "python": _python,
}


def _build(constructor: Callable[..., nn.Module], state: dict[str, Any] | None) -> nn.Module:
    """A model with random weights and the same number of classes as the checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = constructor()
        wanted = None if state is None else class_count(model, state)
        if wanted is not None and wanted != class_count(model):
            model = constructor(num_classes=wanted)
    return model


def _unknown(source: str, name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    others = f"it has {', '.join(list(names)[:4])} and {len(names) - 4} more"
    return f"{source} has no model {name!r}: " + (f"did you mean {', '.join(close)}?" if close else others)


def _attribute(module: Any, path: str, module_name: str) -> Callable[[], Any]:
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            raise WeightsError(f"module {module_name!r} has no {path!r}")
        value = getattr(value, part)
    if not callable(value) or isinstance(value, nn.Module):
        raise WeightsError(f"{module_name}:{path} is {type(value).__name__}: name a function that returns the model")
    return value


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    # The path of the ``fxlrp`` script does not contain the current folder, that of ``python -m`` does.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
