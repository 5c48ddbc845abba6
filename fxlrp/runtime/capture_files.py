"""Captured models as files: the graphs that were read of a model, without its weights.

A file is data: a JSON text and tensors that are plain bytes, of which no code is run. It is of the model that it was
read of, which is given when it is loaded; whether that is the same one its modules, their settings and its tensors
say, and at the first call of what is compiled of it the comparison with the model itself.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxlrp.capture import Captured
from fxlrp.capture.stored import read, read_items, written, written_items
from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import ExportError
from fxlrp.common.items import Items

FORMAT = 1
"""The version of the format; a file says which one it has."""
_TEXT, _TENSORS = "fxlrp_capture.json", "constants.pt"

Kept = tuple[tuple[Any, Any], Captured]
"""What a graph was captured for, and which output is explained, and the graph."""


class UnsavedOutput:
    """Stands for an output that a function chose, which no file holds: it equals none."""


def save(path: Any, model: nn.Module, output: Any, kept: list[Kept]) -> Path:
    """Write the graphs that ``torch.export`` read; a symbolic trace takes milliseconds to make again.

    Raises:
        ExportError: the path is none, it cannot be written, or a graph holds what no file can.
    """
    path = checked_path(path)
    first: dict[Any, Kept] = {}
    for (known, chosen), captured in kept:
        if captured.way == "export" and captured.questions is None:  # all outputs of one call are in one graph
            first.setdefault((known, tuple(captured.shapes.items()), captured.batches), ((known, chosen), captured))
    graphs, constants = [], {}
    for place, ((known, chosen), captured) in enumerate(first.values()):
        graphs.append({"known": _listed(known), "output": _chosen(chosen), **written(captured)})
        constants[str(place)] = dict(captured.constants)
    text = json.dumps({"format": FORMAT, "model": _described(model), "output": _chosen(output), "graphs": graphs})
    tensors = io.BytesIO()
    torch.save(constants, tensors)
    with whole(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_TEXT, text)
        archive.writestr(_TENSORS, tensors.getvalue())
    return path


def load(path: Any, model: nn.Module) -> tuple[Any, list[Kept]]:
    """The output that was chosen, and the graphs in a file.

    Args:
        path: the file.
        model: the model that it was read of.

    Raises:
        ExportError: the file is no capture, it is damaged, or it is of another model.
    """
    path = checked_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            data, tensors = json.loads(archive.read(_TEXT)), archive.read(_TENSORS)
        if data["format"] != FORMAT:
            raise ExportError(f"{path} has another format than {FORMAT}: capture the model anew with this fxlrp")
        _check_model(path, data["model"], _described(model))
        constants = torch.load(io.BytesIO(tensors), weights_only=True)
        kept = [
            ((_tupled(graph["known"]), _as_chosen(graph["output"])), read(graph, model, constants[str(place)]))
            for place, graph in enumerate(data["graphs"])
        ]
        return _as_chosen(data["output"]), kept
    except (ExportError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ExportError(f"{path}: there is no such file") from error
    except Exception as error:  # whatever a file that is none brings about
        raise ExportError(f"{path} is no capture that fxlrp saved, or it is damaged: {error}") from error


def _described(model: nn.Module) -> dict[str, Any]:
    """What a capture depends on of a model: its modules, their plain settings, and the kinds of its tensors."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[path] = type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, str | int | float) and not name.startswith("_") and name != "training":
                found[f"{path}.{name}".removeprefix(".")] = repr(value)
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        found[name] = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device.type}"
    return found


def _check_model(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in [*saved, *own]:
        before, now = saved.get(name, "not there"), own.get(name, "not there")
        if before != now:
            where = repr(name) if name else "the model"
            raise ExportError(f"{path} was captured of another model: {where} is {now} here and was {before}")


def _chosen(output: Any) -> list[Any]:
    """An output as JSON: ``[]`` where a function chose it."""
    return [output] if output is None or isinstance(output, str | int) else []


def _as_chosen(saved: list[Any]) -> Any:
    return saved[0] if saved else UnsavedOutput()


def _listed(known: Any) -> Any:
    if isinstance(known, tuple):
        return [_listed(item) for item in known]
    if isinstance(known, Items):
        return {"items": written_items(known)}
    return {"dtype": str(known).removeprefix("torch.")} if isinstance(known, torch.dtype) else known


def _tupled(known: Any) -> Any:
    if isinstance(known, list):
        return tuple(map(_tupled, known))
    if not isinstance(known, dict):
        return known
    return read_items(known["items"]) if "items" in known else getattr(torch, known["dtype"])
