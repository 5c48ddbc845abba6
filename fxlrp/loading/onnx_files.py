"""Networks in files of ONNX, as modules: converted by onnx2pytorch, and compared with onnxruntime."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.common.atomic_files import unusable
from fxlrp.common.errors import CaptureError
from fxlrp.common.extras import require
from fxlrp.loading.onnx_batch import free_batch, of_one_item
from fxlrp.loading.onnx_numbers import begin_at_zero, fix_numbers, grow_evenly, read_views, session_of, settle_sizes

EXTRA = "onnx"
BATCHES = (1, 2, 3, 9)
"""How many items are tried."""
_FREE = (64, 16, 224, 5)
"""How long other axes are made that a file leaves free, until onnxruntime takes its inputs."""
_CONVERTERS = ("onnx2pytorch", "onnxscript.optimizer")
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
    is free but the batch, the file is read for one item, so that the sizes that it computes are numbers, and the batch
    is let go afterwards; so it is where the file is for one item.

    Args:
        path: the file, which ends in ``.onnx``.

    Raises:
        CaptureError: there is no such file, it is damaged, it holds an explanation, the converter does not know an
            operator, or the module computes something else than onnxruntime.
        MissingExtraError: onnx, onnx2pytorch or onnxruntime is not installed (extra ``onnx``).
    """
    if reason := unusable(path):
        raise CaptureError(f"{path}: {reason}")
    if not Path(path).is_file():
        raise CaptureError(
            f"fxlrp compiles a torch.nn.Module, not {type(path).__name__}: load it first; of a file of ONNX "
            f"onnx2pytorch or onnx2torch make a module, but there is no file {path}"
        )
    onnx, runtime = require("onnx", EXTRA), require("onnxruntime", EXTRA)
    for package in _CONVERTERS:
        require(package, EXTRA)
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
            module = _module(path, _trials(onnx, session_of(runtime, str(path)), file))
    except CaptureError:
        raise
    except Exception as error:  # of four packages
        raise CaptureError(
            f"{path} cannot be made a module by onnx2pytorch: {type(error).__name__}: {_first_line(error)}. "
            "Compile the torch.nn.Module that it was exported from"
        ) from error
    return _named(module).eval().requires_grad_(False)


def input_shape(path: str | os.PathLike[str]) -> list[int | None]:
    """The shape of the first input of a file that :func:`onnx_model` reads, ``None`` for axes that are free."""
    graph = require("onnx", EXTRA).load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    first = next(value for value in graph.input if value.name not in constants)
    return _sizes(first.type.tensor_type)


def _sizes(kind: Any) -> list[int | None]:
    return [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in kind.shape.dim]


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


class Trials(NamedTuple):
    """Random inputs of a file by position, and what onnxruntime makes of them.

    Attributes:
        inputs: for each batch, an array for each input.
        outputs: likewise for each output.
        items: for each input whether its first axis is the batch; ``None`` where other axes are free, or the batch is
            a number other than one.
        alone: the inputs of two items, where there are ``items``.
        free: whether the file takes several items.
    """

    inputs: list[list[Any]]
    outputs: list[list[Any]]
    items: list[bool] | None
    alone: list[list[Any]]
    free: bool


def _trials(onnx: Any, session: Any, file: Any) -> Trials:
    """Inputs that onnxruntime takes, with several batches.

    Raises:
        CaptureError: it takes none that is tried, so that a module could not be compared with the file.
    """
    constants = {tensor.name for tensor in file.graph.initializer}
    kinds = [value.type.tensor_type for value in file.graph.input if value.name not in constants]
    sizes = [_sizes(kind) for kind in kinds]
    fixed = all(None not in each[1:] for each in sizes)
    for length in _FREE[:1] if fixed else _FREE:
        generator, inputs, outputs = np.random.default_rng(0), [], []
        try:
            for batch in BATCHES:
                given = []
                for kind, each in zip(kinds, sizes, strict=True):
                    shape = [(length if axis else batch) if size is None else size for axis, size in enumerate(each)]
                    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                    drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
                    given.append(drawn.astype(dtype))
                inputs.append(given)
                names = [value.name for value in session.get_inputs()]
                outputs.append(session.run(None, dict(zip(names, given, strict=True))))
        except Exception as error:  # onnxruntime raises many kinds where sizes do not fit
            reason = error
            continue
        free = any(None in each for each in sizes)
        if free and fixed:
            items = [None in each for each in sizes]
            alone = [[each[row : row + 1] if own else each for own, each in zip(items, inputs[-1], strict=True)]
                     for row in range(2)]  # fmt: skip
            return Trials(inputs, outputs, items, alone, free)
        one = not free and all(each.shape[:1] == (1,) for run in (*inputs, *outputs) for each in run)
        return Trials(inputs, outputs, [True] * len(kinds) if one else None, inputs[:2] if one else [], free)
    raise CaptureError(f"onnxruntime takes no random input of this file, to compare it with: {_first_line(reason)}")


def _module(path: str | os.PathLike[str], trials: Trials) -> nn.Module:
    """The network in a file as a module that computes the same; of any batch where that can be."""
    if trials.items is not None:
        if trials.free:
            onnx, runtime = require("onnx", EXTRA), require("onnxruntime", EXTRA)
            if not grow_evenly(onnx, runtime, onnx.load(str(path)), BATCHES, trials.inputs):
                raise CaptureError(f"{path} computes something else from a certain batch on: the batch decides in it")
        try:
            module = _converted(path, trials.items, trials.alone[0])
            free_batch(module, trials.items, *(list(map(torch.from_numpy, given)) for given in trials.alone))
            inputs, outputs = (trials.inputs, trials.outputs) if trials.free else map(_batches, trials[:2])
            _compare(path, module, inputs, outputs)
            return module
        except Exception:  # of four packages: sizes do not fit several items
            if not trials.free:  # the file is for one item, and so is the module
                return _compared(path, _converted(path, trials.items, trials.alone[0]), trials)
    return _compared(path, _converted(path), trials)


def _batches(runs: list[list[Any]]) -> list[list[Any]]:
    """Arrays of three items, one after the other, as those of several batches."""
    return [[np.concatenate(each[:batch]) for each in zip(*runs, strict=True)] for batch in BATCHES]


def _converted(
    path: str | os.PathLike[str], items: Sequence[bool] | None = None, inputs: Sequence[Any] | None = None
) -> nn.Module:
    """What onnx2pytorch makes of a file, for one item where ``items`` tells which inputs have a batch.

    ``inputs``: such arrays, where no axis is free then.
    """
    onnx, runtime, converter, optimizer = (
        require(package, EXTRA) for package in ("onnx", "onnxruntime", *_CONVERTERS)
    )
    file = onnx.load(str(path))
    if items is not None:
        of_one_item(file, items)
    file = optimizer.optimize(file)
    _name_plainly(file.graph)
    begin_at_zero(onnx, file)
    read_views(onnx, file)
    if inputs is not None:
        settle_sizes(onnx, runtime, file, inputs)
    module: nn.Module = converter.ConvertModel(file)
    fix_numbers(onnx, module)
    return module.eval()


def _compared(path: str | os.PathLike[str], module: nn.Module, trials: Trials) -> nn.Module:
    _compare(path, module, trials.inputs, trials.outputs)
    return module


def _compare(
    path: str | os.PathLike[str], module: nn.Module, inputs: Sequence[list[Any]], outputs: Sequence[list[Any]]
) -> None:
    """Raise where a module computes something else than a file."""
    for given, expected in zip(inputs, outputs, strict=True):
        with torch.no_grad():
            found = module(*map(torch.from_numpy, given))
        for theirs, ours in zip(expected, [found] if isinstance(found, Tensor) else found, strict=True):
            wanted = torch.from_numpy(theirs).double()
            off = _distance(ours.double(), wanted) if ours.shape == wanted.shape and wanted.numel() else torch.inf
            if not off <= _LIMIT:
                raise CaptureError(
                    f"{path} is another function in onnx2pytorch than in onnxruntime: outputs differ by "
                    f"{off:.2g} of their size. Compile the torch.nn.Module that it was exported from"
                )


def _distance(ours: Tensor, wanted: Tensor) -> float:
    """The largest difference of two values, as a part of the largest element; masked ones, which are huge, aside."""
    same = (ours == wanted) | (ours.isnan() & wanted.isnan())
    usual = wanted[(wanted.abs() < _HUGE) & wanted.isfinite()].abs()
    scale = torch.full_like(wanted, max(float(usual.max()) if len(usual) else 0.0, 1e-6))
    scale = torch.where(wanted.abs() < _HUGE, scale, wanted.abs())
    off = ((ours - wanted).abs() / scale).masked_fill(same, 0)
    return float(off.nan_to_num(nan=torch.inf).max())


_HUGE = 1e4
"""What is larger stands for no logit: a mask, such as −10⁹."""


class _Named(nn.Module):
    """A network whose inputs have names, those of the file.

    Args:
        network: the network, which takes them by position.
        names: the names.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)


def _named(network: Any) -> nn.Module:
    """The network of a file with a signature: inputs by position or by name."""
    names = [name if name.isidentifier() and not iskeyword(name) else f"input_{name}" for name in network.input_names]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(self: _Named, *args: Tensor, **kwargs: Tensor) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        return self.network(*(given[name] for name in self.names))

    vars(forward)["__signature__"] = signature
    return type("OnnxNetwork", (_Named,), {"forward": forward})(network, names)
