"""Explanations as ONNX, which other runtimes execute."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.exported import quiet
from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import ExportError
from fxlrp.common.extras import require
from fxlrp.exports.onnx_program import for_onnx
from fxlrp.exports.portable import check_path, exported
from fxlrp.exports.saved import SavedExplainer, check_results
from fxlrp.exports.signature import Signature
from fxlrp.runtime.engine import Engine

METADATA = "fxlrp"
"""The key of the file's metadata under which its signature is, as JSON."""
_LOOKUPS = ("Gather", "GatherElements", "GatherND", "OneHot", "ScatterElements", "ScatterND")
_SAME_NUMBERS = ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def export_onnx(engine: Engine, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
    """What :meth:`fxlrp.Explainer.export_onnx` does."""
    path = checked_path(path)
    onnx, runtime = require("onnx", "onnx"), require("onnxruntime", "onnx")
    require("onnxscript", "onnx")
    check_path(path, (".onnx",))
    found = exported(engine, example_inputs, portable=for_onnx)
    names = [*(spec.name for spec in found.signature.inputs), *(["target"] if found.signature.takes_target else [])]
    # A name of ONNX is of one value.
    outputs = [{"target": "explained_class"}.get(name, name) for name in found.signature.outputs]
    outputs = [f"{name}_out" if name in names else name for name in outputs]
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                found.program, input_names=names, output_names=outputs, dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).split("## Exception summary")[-1].strip().splitlines()[0]
        raise ExportError(f"this explanation cannot be written as ONNX: {reason}") from error
    assert program is not None
    program.model.metadata_props[METADATA] = found.signature.dump()
    with whole(path) as beside:
        program.save(beside, external_data=False)
        _finish(onnx, beside, found.signature.classes)
        onnx.checker.check_model(str(beside))
        check_results(found, OnnxSession(runtime, beside))
    return path


def _finish(onnx: Any, path: Path, classes: int | None) -> None:
    """Let the free axis be called ``batch``, and what looks up a class say which there are."""
    model = onnx.load(str(path))
    _name_batch(model.graph)
    if classes is not None:
        _name_lookups(model.graph, classes)
    onnx.save(model, str(path))


def _name_batch(graph: Any) -> None:
    values = [*graph.input, *graph.output, *graph.value_info]
    old = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == old:
                dim.dim_param = "batch"


def _name_lookups(graph: Any, classes: int) -> None:
    """Name the nodes that look up the class: a runtime tells the name where the target is none."""
    numbers = {"explained_class"}
    for node in graph.node:  # in the order in which they run
        if numbers.isdisjoint(node.input):
            continue
        if node.op_type in _SAME_NUMBERS:
            numbers.update(node.output)
        elif node.op_type in _LOOKUPS:
            node.name = f"target is -1, the predicted class, or a class from 0 to {classes - 1}: {node.name}"


def load_onnx(path: Path, device: str | torch.device | None = None) -> SavedExplainer:
    """The explanation in a file of ONNX, run by onnxruntime on the CPU.

    Raises:
        ExportError: the file is no explanation that fxlrp wrote, it is damaged, or another device is asked for.
        MissingExtraError: onnxruntime is not installed (extra ``onnx``).
    """
    runtime = require("onnxruntime", "onnx")
    if device is not None and torch.device(device).type != "cpu":
        raise ExportError(f"{path} runs on the CPU here, and cannot run on {device}")
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    try:
        session = OnnxSession(runtime, path)
        signature = Signature.of(json.loads(session.signature))
        signature.explanation([torch.zeros(1)] * len(signature.outputs))  # its parts fit together
    except Exception as error:  # onnxruntime raises many kinds for a damaged file
        raise ExportError(f"{path} is no explanation that fxlrp wrote, or it is damaged: {error}") from error
    taken, given = len(signature.inputs) + signature.takes_target, len(signature.outputs)
    if (len(session.names), session.count) != (taken, given):
        raise ExportError(f"{path} is damaged: its signature is not that of its program")
    return SavedExplainer(session, signature, torch.device("cpu"))


class OnnxSession:
    """An ONNX file as a function of tensors."""

    def __init__(self, runtime: Any, path: Path) -> None:
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]
        self.count = len(self.session.get_outputs())
        self.signature = self.session.get_modelmeta().custom_metadata_map.get(METADATA, "")

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.cpu().numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return [torch.as_tensor(value) for value in self.session.run(None, given)]
