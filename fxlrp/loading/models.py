"""Models by name, for the command line: the module, its preprocessing and the names of its classes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fxlrp.common.errors import FxlrpError, WeightsError
from fxlrp.common.extras import require
from fxlrp.loading import onnx_files, preprocessing
from fxlrp.loading.checkpoints import Checkpoint, class_count, fit, read_checkpoint_file
from fxlrp.loading.images import Preprocess
from fxlrp.loading.preprocessing import Asked, InputFormat

NOTHING_ASKED = Asked()


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
        input_format: what the preprocessing does, where that is known.
        preprocessing_from: who says how the input is made: ``"model"``, ``"user"``, or ``"guess"``.
        input_shape: channels, height and width of an input, ``None`` for those that are free, where a file says it.
    """

    model: nn.Module
    preprocess: Preprocess | None = None
    classes: Sequence[str] | None = None
    input_format: InputFormat | None = None
    preprocessing_from: str = "model"
    input_shape: Sequence[int | None] = (None, None, None)


def load_model(spec: str, weights: str | os.PathLike[str] | None = None, asked: Asked = NOTHING_ASKED) -> LoadedModel:
    """Build the model that a specification names, in eval mode. Nothing is downloaded.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``transformers:FOLDER``, ``onnx:FILE`` or
            ``python:package.module:callable``. The folder is one that ``save_pretrained`` wrote, of an image
            classifier; the file is of a classifier of pictures. The callable takes no arguments and returns the
            module, ``(module, preprocess)`` or a :class:`LoadedModel`; modules in the current folder can be named too.
        weights: a checkpoint file, written by ``torch.save`` or safetensors: a state dict, bare or
            under a key such as ``"state_dict"``. Without one a torchvision or timm model has
            random weights, the same at every call.
        asked: what the user says of the preprocessing and of the classes, in place of what the model says.

    Returns:
        The model; ``preprocess`` is never ``None``.

    Warns:
        ModelWarning: the weights are random, or the preprocessing is a guess.

    Raises:
        WeightsError: the specification is unknown, the callable fails, or the checkpoint
            cannot be read or does not fit.
        InputError: what the user says of the preprocessing does not fit together.
        CaptureError: a file of ONNX cannot be read as a module.
        MissingExtraError: timm, transformers, safetensors or onnx2pytorch is needed and not installed.
    """
    source, _, name = spec.partition(":")
    if source not in _SOURCES or not name:
        kinds = "torchvision:NAME, timm:NAME, python:package.module:callable, transformers:FOLDER, onnx:FILE"
        meant = _meant(spec)
        raise WeightsError(f"--model {spec!r} is none of {kinds}" + (f": did you mean {meant}?" if meant else ""))
    # Files are read first, because building a model may take long.
    classes = None if asked.classes is None else preprocessing.read_classes(asked.classes)
    checkpoint = None if weights is None else read_checkpoint_file(weights)
    loaded = _SOURCES[source](name, None if checkpoint is None else checkpoint.state)
    if checkpoint is not None:
        fit(loaded.model, checkpoint.state, weights)
    elif source in ("torchvision", "timm"):
        warnings.warn(
            f"{spec} has random weights: what is explained is an untrained network. "
            "Give a checkpoint to explain a trained one (--weights FILE)",
            ModelWarning, stacklevel=2,
        )  # fmt: skip
    loaded = _with_preprocessing(loaded, spec, checkpoint, asked)
    if classes is not None:
        count = class_count(loaded.model)
        if count is not None and count != len(classes):
            raise WeightsError(f"--classes {asked.classes} has {len(classes)} names, and the model {count} classes")
        loaded = replace(loaded, classes=classes)
    loaded.model.eval()
    return loaded


def _with_preprocessing(loaded: LoadedModel, spec: str, checkpoint: Checkpoint | None, asked: Asked) -> LoadedModel:
    """The model with a preprocessing: its own, the user's, or a guess."""
    said = preprocessing.of_transforms(loaded.preprocess) if loaded.input_format is None else loaded.input_format
    own, names = said or _of_configuration(loaded.model), None
    if checkpoint is not None:
        kept, names = preprocessing.of_hyperparameters(checkpoint.hyperparameters)
        own = own or kept
    loaded = replace(loaded, classes=loaded.classes or names)
    if loaded.preprocess is not None and not asked.preprocessing:
        return replace(loaded, input_format=said)
    known = own is not None
    taken = asked.applied(own or preprocessing.guessed(loaded.model, loaded.input_shape))
    if not known and not asked.preprocessing:
        usual = "ImageNet's, " if taken == preprocessing.IMAGENET else ""
        warnings.warn(
            f"{spec} does not say how its input is made: taken as {usual}{taken}. "
            "--size, --mean, --std and --channels say it",
            ModelWarning, stacklevel=3,
        )  # fmt: skip
    came = "user" if asked.preprocessing else "model" if known else "guess"
    return replace(loaded, preprocess=taken.preprocess(), input_format=taken, preprocessing_from=came)


def _of_configuration(model: nn.Module) -> InputFormat | None:
    """What a model that timm made says of its input."""
    config = getattr(model, "pretrained_cfg", None)
    needed = ("input_size", "mean", "std", "crop_pct")
    if not isinstance(config, Mapping) or any(config.get(name) is None for name in needed):
        return None
    usual = config["input_size"][0] in (1, 3) and config.get("crop_mode") in (None, "center")
    return preprocessing.of_timm(config) if usual else None


def _meant(spec: str) -> str:
    """What a specification without its source may stand for; ``""``: nobody can tell."""
    source, colon, name = spec.partition(":")
    if spec in torchvision.models.list_models(module=torchvision.models):
        return f"torchvision:{spec}"
    if spec.endswith(".onnx"):
        return f"onnx:{spec}"
    if os.path.isfile(os.path.join(spec, "config.json")):
        return f"transformers:{spec}"
    close = difflib.get_close_matches(source.lower(), _SOURCES, n=1, cutoff=0.6)
    if colon and name and close:
        return f"{close[0]}:{name}"
    file = source if source.endswith(".py") else f"{source.replace('.', '/')}.py"
    return f"python:{_module_name(file)}:{name or 'callable'}" if os.path.isfile(file) else ""


def _module_name(file: str) -> str:
    return os.path.normpath(file.removesuffix(".py")).replace(os.sep, ".")


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
    named = classes if class_count(model) == len(classes) else None
    return LoadedModel(model, weights.transforms(), named, preprocessing.of_torchvision(weights.transforms()))


def _timm(name: str, state: dict[str, Any] | None) -> LoadedModel:
    timm = require("timm", "timm")
    # timm would look up names such as "hf-hub:..." on the network.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise WeightsError(_unknown("timm", name, timm.list_models()))
    try:
        model = _build(partial(timm.create_model, name, pretrained=False), state)
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config, is_training=False)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"timm cannot build {name!r}: {error}") from error
    named = imagenet_classes() if class_count(model) == 1000 else None
    return LoadedModel(model, transform, named, preprocessing.of_transforms(transform))


class _Logits(nn.Module):
    """An image classifier of transformers, from pictures to its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Any:
        return self.model(pixel_values=pixel_values).logits


def _transformers(folder: str, state: dict[str, Any] | None) -> LoadedModel:
    transformers = require("transformers", "text")
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise WeightsError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    try:
        with _no_bars(transformers):
            model = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever in the folder transformers cannot read
        raise WeightsError(f"transformers cannot read {folder}: {type(error).__name__}: {error}") from error
    names = [str(name) for _, name in sorted(model.config.id2label.items())]
    preprocess = None
    if os.path.isfile(os.path.join(folder, "preprocessor_config.json")):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)

        def preprocess(image: Any) -> Tensor:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]

    return LoadedModel(_Logits(model), preprocess, names, input_shape=_configured_shape(model.config))


def _configured_shape(config: Any) -> Sequence[int | None]:
    """Channels, height and width of the pictures that a model of transformers was configured for."""
    size = getattr(config, "image_size", None)
    height, width = size if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    shape = (getattr(config, "num_channels", None), height, width)
    return [value if isinstance(value, int) else None for value in shape]


@contextmanager
def _no_bars(transformers: Any) -> Iterator[None]:
    """Reading a folder is a matter of seconds, and standard error is for what the user must know."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def _onnx(path: str, state: dict[str, Any] | None) -> LoadedModel:
    if state is not None:
        raise WeightsError(f"--weights: onnx:{path} holds its weights")
    model = onnx_files.onnx_model(path)
    shape = onnx_files.input_shape(path)
    if len(shape) != 4 or shape[1] not in (None, 1, 3):
        raise WeightsError(
            f"onnx:{path} takes inputs of shape {_sizes(shape)}, and a picture is (batch, channels, height, width) "
            f"with 1 or 3 channels: explain it in Python, with fxlrp.compile({path!r})"
        )
    return LoadedModel(model, input_shape=shape[1:])


def _sizes(shape: Sequence[int | None]) -> str:
    return f"({', '.join('free' if size is None else str(size) for size in shape)})"


def import_callable(target: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules in the current folder can be named too.

    Raises:
        WeightsError: there is no such function.
    """
    module_name, _, function = target.partition(":")
    if not module_name or not function:
        raise WeightsError(f"{target} does not name a callable: write python:package.module:callable")
    if module_name.endswith(".py"):
        raise WeightsError(f"{module_name} is a file: name the module, python:{_module_name(module_name)}:{function}")
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


def imported_result(target: str) -> Any:
    """What the function returns that ``package.module:function`` names; it takes no arguments.

    Raises:
        WeightsError: there is no such function, or it fails.
    """
    function = import_callable(target)
    with _user_code(target):
        return function()


def _python(target: str, state: dict[str, Any] | None) -> LoadedModel:
    made = imported_result(target)
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
    "transformers": _transformers,
    "onnx": _onnx,
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
            names = [name for name in dir(value) if callable(getattr(value, name))]
            close = difflib.get_close_matches(part, names, n=3)
            hint = f": did you mean {', '.join(close)}?" if close else ""
            raise WeightsError(f"module {module_name!r} has no {path!r}{hint}")
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
