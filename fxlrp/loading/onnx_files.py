"""Networks in files of ONNX, as modules: converted by onnx2pytorch, and compared with onnxruntime."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.common.errors import CaptureError
from fxlrp.common.extras import require
from fxlrp.loading.onnx_numbers import BATCHES, Trials, fix_numbers, session_of, settle_sizes, spread_batch

EXTRA = "onnx"
_FREE = (64, 16, 224, 5)
"""How long other axes are made that a file leaves free, until onnxruntime takes its inputs."""
_OURS = "fxlrp"
"""The key of the metadata of files that hold an explanation."""
_LIMIT = 1e-3
"""How far the module may be from the file, of the largest output: float32, summed in another order."""


def is_onnx(model: Any) -> bool:
    """Whether a model is the path of a file of ONNX."""
    return isinstance(model, str | os.PathLike) and str(model).lower().endswith(".onnx")


def onnx_model(path: str | os.PathLike[str]) -> nn.Module:
    """The network in a file of ONNX as a module in eval mode.

    Its outputs are compared with those of onnxruntime for random inputs of three batches. Where no axis of its inputs
    is free but the batch, the sizes that the file computes are made numbers: a capture need not follow them.

    Args:
        path: the file, which ends in ``.onnx``.

    Raises:
        CaptureError: there is no such file, it is damaged, it holds an explanation, the converter does not know an
            operator, or the module computes something else than onnxruntime.
        MissingExtraError: onnx, onnx2pytorch or onnxruntime is not installed (extra ``onnx``).
    """
    if not Path(path).is_file():
        raise CaptureError(
            f"fxlrp compiles a torch.nn.Module, not {type(path).__name__}: load it first; of a file of ONNX "
            f"onnx2pytorch or onnx2torch make a module, but there is no file {path}"
        )
    onnx, converter = require("onnx", EXTRA), require("onnx2pytorch", EXTRA)
    runtime, optimizer = require("onnxruntime", EXTRA), require("onnxscript.optimizer", EXTRA)
    try:
        file = onnx.load(str(path))
        onnx.checker.check_model(file)
    except Exception as error:  # a decoder, a checker and a reader of weights, each with errors of its own
        raise CaptureError(f"{path} is no file of ONNX, or it is damaged: {_first_line(error)}") from error
    if any(entry.key == _OURS for entry in file.metadata_props):
        raise CaptureError(f"{path} holds an explanation, not a model: fxlrp.load({str(path)!r}) reads it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trials = _trials(onnx, session_of(runtime, str(path)), file)
            file = optimizer.optimize(file)
            _name_plainly(file.graph)
            spread = settle_sizes(onnx, runtime, file, trials) if trials.settled else {}
            module: nn.Module = converter.ConvertModel(file)
            spread_batch(module, spread)
            fix_numbers(onnx, module)
            module.eval()
            _compare(path, module, trials)
    except CaptureError:
        raise
    except Exception as error:  # of four packages
        raise CaptureError(
            f"{path} cannot be made a module by onnx2pytorch: {type(error).__name__}: {_first_line(error)}. "
            "Compile the torch.nn.Module that it was exported from"
        ) from error
    return module.requires_grad_(False)


def _name_plainly(graph: Any) -> None:
    """Give values names without dots, because they become those of modules and buffers."""
    plain: dict[str, str] = {}
    taken: set[str] = set()
    for value in [*graph.input, *graph.initializer, *graph.node]:
        for name in value.output if hasattr(value, "output") else [value.name]:
            new = re.sub(r"\W+", "_", name).strip("_") or "value"
            while new in taken and name not in plain:
                new += "_"
            taken.add(plain.setdefault(name, new))
    for node in graph.node:
        node.name = plain[node.output[0]]
        for names in (node.input, node.output):
            names[:] = [plain.get(name, name) for name in names]
    for value in [*graph.input, *graph.initializer, *graph.output, *graph.value_info]:
        value.name = plain.get(value.name, value.name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason is given").splitlines()[0]


def _trials(onnx: Any, session: Any, file: Any) -> Trials:
    """Inputs that onnxruntime takes, with several batches.

    Raises:
        CaptureError: it takes none that is tried, so that a module could not be compared with the file.
    """
    constants = {tensor.name for tensor in file.graph.initializer}
    kinds = [value.type.tensor_type for value in file.graph.input if value.name not in constants]
    sizes = [[dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim] for kind in kinds]
    settled = all(each and None not in each[1:] for each in sizes)
    for length in _FREE[:1] if settled else _FREE:
        generator, inputs, outputs = np.random.default_rng(0), [], []
        try:
            for batch in BATCHES:
                given = []
                for kind, each in zip(kinds, sizes, strict=True):
                    shape = [(length if axis else batch) if size is None else int(size)
                             for axis, size in enumerate(each)]  # fmt: skip
                    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                    drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
                    given.append(drawn.astype(dtype))
                inputs.append(given)
                names = [value.name for value in session.get_inputs()]
                outputs.append(session.run(None, dict(zip(names, given, strict=True))))
            return Trials(inputs, outputs, settled)
        except Exception as error:  # onnxruntime raises many kinds where sizes do not fit
            reason = error
    raise CaptureError(f"onnxruntime takes no random input of this file, to compare it with: {_first_line(reason)}")


def _compare(path: str | os.PathLike[str], module: nn.Module, trials: Trials) -> None:
    """Raise where a module computes something else than a file."""
    for inputs, outputs in zip(trials.inputs, trials.outputs, strict=True):
        with torch.no_grad():
            found = module(*map(torch.from_numpy, inputs))
        for theirs, ours in zip(outputs, [found] if isinstance(found, Tensor) else found, strict=True):
            wanted = torch.from_numpy(theirs).double()
            off = (ours.double() - wanted).abs().max() if ours.shape == wanted.shape and wanted.numel() else torch.inf
            if not float(off) <= _LIMIT * max(float(wanted.abs().max()), 1e-6):
                raise CaptureError(
                    f"{path} is another function in onnx2pytorch than in onnxruntime: outputs differ by "
                    f"{float(off):.2g}. Compile the torch.nn.Module that it was exported from"
                )
