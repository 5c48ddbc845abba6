"""Explanations as ONNX, which other runtimes execute."""

from __future__ import annotations

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
from fxlrp.exports.saved import check_results
from fxlrp.runtime.engine import Engine

METADATA = "fxlrp"
"""The key of the file's metadata under which its signature is, as JSON."""


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
        _name_batch(onnx, beside)
        onnx.checker.check_model(str(beside))
        check_results(found, OnnxSession(runtime, beside))
    return path


def _name_batch(onnx: Any, path: Path) -> None:
    """Let the free axis be called ``batch``."""
    model = onnx.load(str(path))
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    old = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == old:
                dim.dim_param = "batch"
    onnx.save(model, str(path))


class OnnxSession:
    """An ONNX file as a function of tensors."""

    def __init__(self, runtime: Any, path: Path) -> None:
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.cpu().numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return [torch.as_tensor(value) for value in self.session.run(None, given)]
