"""Checkpoint files: read without running code that is in them, and loaded into a model."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.atomic_files import unusable
from fxlrp.common.errors import WeightsError
from fxlrp.common.extras import require

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the state dict."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that ``DataParallel`` and ``torch.compile`` add to every name."""

# The class that torch names where a checkpoint holds an object.
_UNSAFE = re.compile(r"GLOBAL ([\w.]+)")

# torchvision's DenseNet checkpoints are older than its code: these names have one more dot.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state: the state dict, on the CPU, without wrappers and prefixes.
        hyperparameters: what Lightning keeps beside it.
    """

    state: dict[str, Tensor]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU, without wrappers and prefixes.

    Arguments and errors are those of :func:`read_checkpoint_file`.
    """
    return read_checkpoint_file(path).state


def read_checkpoint_file(path: str | os.PathLike[str]) -> Checkpoint:
    """The state dict in a checkpoint file, and what lies beside it.

    Args:
        path: written by ``torch.save``, or a ``.safetensors`` file.

    Raises:
        WeightsError: there is no such file, or it contains no state dict.
        MissingExtraError: a ``.safetensors`` file needs the package safetensors, which is not installed.
    """
    path = Path(path)
    if reason := unusable(path):
        raise WeightsError(f"{path}: {reason}")
    if path.is_dir():
        raise WeightsError(f"the weights {path} are a folder: give a checkpoint file")
    if not path.exists():
        raise WeightsError(f"there is no weights file {path}")
    content = _read(path)
    kept = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    states = _states(content)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    else:
        if len(states) > 1:
            raise WeightsError(
                f"{path} holds {len(states)} state dicts, {', '.join(states)}: write the one that is meant to a file "
                f"of its own, torch.save(torch.load({str(path)!r})[{next(iter(states))!r}], 'weights.pt')"
            )
        content = next(iter(states.values()), content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_described(content)}, not a state dict")
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise WeightsError(f"{path} holds no state dict: {_listed(not_tensors)} is no tensor")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}
    return Checkpoint(state, kept if isinstance(kept, Mapping) else {})


def _states(content: Any) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts that a checkpoint holds under keys of its own, such as ``student``."""
    if not isinstance(content, Mapping):
        return {}
    inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping) and value}
    return {key: value for key, value in inner.items() if all(isinstance(each, Tensor) for each in value.values())}


def own_names(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state by the model's own names, where it is that of a larger module of which this one is a part.

    A Lightning module, for example, puts ``model.`` before every name, and may have a loss with weights beside it.
    Where no prefix makes the names fit, the state is as it was.
    """
    own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    if not own or own[0] in state:
        return state
    for prefix in [key.removesuffix(own[0]) for key in state if key.endswith(f".{own[0]}")]:
        if all(prefix + key in state for key in own):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Any) -> None:
    """Load a state dict into the model, completely or not at all.

    Args:
        model: the model, changed in place.
        state: from :func:`read_checkpoint`.
        path: the file's name, for the message.

    Raises:
        WeightsError: names or shapes differ; the message lists them.
    """
    own, state = model.state_dict(), own_names(model, state)
    # Only training uses this counter of batch norm, and old checkpoints do not have it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    different = [
        f"{key} ({tuple(state[key].shape)} in the file, {tuple(value.shape)} in the model)"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        f"{what}: {_listed(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", different))
        if keys
    ]
    if problems:
        raise WeightsError(f"{path} does not fit the model; {'; '.join(problems)}")
    try:
        model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model: {error}") from error


def class_count(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> int | None:
    """The number of classes of a classifier, from the size of its last layer.

    Args:
        model: the classifier.
        state: a state dict of the same architecture, read instead of the model's own.

    Returns:
        ``None`` if there is no such layer.
    """
    last = next((key for key, value in reversed(model.state_dict().items()) if value.dim() > 1), None)
    value = None if last is None else (model.state_dict() if state is None else own_names(model, state)).get(last)
    return None if value is None or value.dim() < 2 else value.shape[0]


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return require("safetensors.torch", "timm").load_file(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
        except Exception as error:
            # SafetensorError derives directly from Exception.
            if type(error).__name__ != "SafetensorError":
                raise
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    _check_sums(path)
    _refuse_scripts(path)
    try:
        # The options that a script was started with are no code, and many keep them beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise WeightsError(f"{path} may not be read: permission denied") from error
    except pickle.UnpicklingError as error:
        # Raised both for damaged files and for objects that could run code when they are read.
        named = _UNSAFE.search(str(error))
        holds = f" (it holds a {named[1]})" if named else ""
        raise WeightsError(
            f"{path} is not a checkpoint that holds nothing but tensors{holds}; others are not read, because they can "
            "run code. If it is a whole pickled model: where it was made, write torch.save(model.state_dict(), "
            "'weights.pt')"
        ) from error
    # A damaged file can raise almost anything here.
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {first}") from error


def _refuse_scripts(path: Path) -> None:
    """Raise where a file is a program of TorchScript.

    Raises:
        WeightsError: so it is.
    """
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(
                f"{path} is a program of TorchScript, which holds code and no modules to read. Where it was made, "
                "write torch.save(model.state_dict(), 'weights.pt') of the model that was scripted"
            )


def _check_sums(path: Path) -> None:
    """Raise where a checkpoint was damaged after it was written: torch does not compare the check sums in it.

    Raises:
        WeightsError: so it is.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's older format has none
    bad, members = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            for name in members:
                with suppress(zipfile.BadZipFile, zlib.error), archive.open(name) as member:
                    while member.read(1 << 20):
                        pass
                    continue
                bad.append(name)
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as a checkpoint: {error}") from error
    if bad and len(bad) < len(members):  # all: torch was told to compute none
        raise WeightsError(f"{path} is damaged: {_listed(bad)} is not what was written")


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _described(content: Any) -> str:
    return "an empty dict" if isinstance(content, Mapping) else f"an object of type {type(content).__name__}"
