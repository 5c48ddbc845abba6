"""Networks in files of ONNX, as modules: converted by onnx2pytorch, and compared with onnxruntime."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.common.errors import CaptureError
from fxlrp.common.extras import require

EXTRA = "onnx"
_ITEMS = (2, 3)
"""Batches with which sizes in a file are computed: what differs between them depends on the batch."""
_OURS = "fxlrp"
"""The key of the metadata of files that hold an explanation."""
_LIMIT = 1e-3
"""How far the module may be from the file, of the largest output: float32, summed in another order."""


def is_onnx(model: Any) -> bool:
    """Whether a model is the path of a file of ONNX."""
    return isinstance(model, str | os.PathLike) and str(model).lower().endswith(".onnx")


def onnx_model(path: str | os.PathLike[str]) -> nn.Module:
    """The network in a file of ONNX as a module in eval mode.

    All sizes in the file are taken as fixed, but for the first axis of its inputs, the batch. Where no other axis is
    free its outputs are compared with those of onnxruntime for random inputs.

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
            file = optimizer.optimize(file)
            _name_plainly(file.graph)
            trials = _trials(onnx, file)
            spread = _settle_sizes(onnx, runtime, file, trials) if trials else {}
            module: nn.Module = converter.ConvertModel(file)
            _spread_batch(module, spread)
            _fix_numbers(onnx, module)
            module.eval()
            _compare(runtime, file_bytes=Path(path), module=module, trials=trials)
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
    for value in [*graph.input, *graph.initializer, *(node for node in graph.node)]:
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


def _trials(onnx: Any, file: Any) -> list[dict[str, Any]]:
    """Random inputs with several batches; none where an axis beside the batch is free."""
    constants = {tensor.name for tensor in file.graph.initializer}
    values = [value for value in file.graph.input if value.name not in constants]
    generator, trials = np.random.default_rng(0), []
    for batch in _ITEMS:
        given = {}
        for value in values:
            kind = value.type.tensor_type
            sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
            if not sizes or None in sizes[1:]:
                return []
            shape = [batch if size is None else int(size) for size in sizes]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
            given[value.name] = drawn.astype(dtype)
        trials.append(given)
    return trials


def _settle_sizes(onnx: Any, runtime: Any, file: Any, trials: list[dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    """Write sizes that a file computes as numbers into it, by running it.

    Returns:
        Of outputs that are expanded to the batch: an input of the file, and the sizes, −1 in the place of the batch.
    """
    graph = file.graph
    known = {tensor.name for tensor in graph.initializer}
    sizes: dict[str, None] = {}  # what depends on shapes, and on nothing else that is not constant
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant":
            known.update(node.output)
        elif node.op_type == "Shape" or (inputs and all(name in sizes or name in known for name in inputs)):
            sizes.update(dict.fromkeys(node.output))
    if not sizes:
        return {}
    asked = onnx.ModelProto()
    asked.CopyFrom(file)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sizes)
    session = runtime.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    few, many = (dict(zip(sizes, session.run(list(sizes), given), strict=True)) for given in trials)
    spread: dict[str, tuple[str, list[int]]] = {}
    settled = {name: few[name] for name in sizes if np.array_equal(few[name], many[name])}
    for node in graph.node:
        shape = node.input[1] if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 else ""
        if shape in settled or shape not in sizes:
            continue
        differing = np.flatnonzero(few[shape] != many[shape])
        open_sizes = np.where(few[shape] != many[shape], -1, few[shape])
        if len(differing) != 1 or (node.op_type == "Reshape" and (few[shape] < 0).any()):
            continue  # the converter may know what to do
        if node.op_type == "Expand" and few[shape][differing[0]] == _ITEMS[0]:
            spread[node.output[0]] = next(iter(trials[0])), open_sizes.tolist()
        settled[f"{node.output[0]}_shape"] = open_sizes
        node.input[1] = f"{node.output[0]}_shape"
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in settled.items())
    kept, needed = [], {value.name for value in graph.output}
    for node in reversed(graph.node):
        if any(name in needed for name in node.output) and not all(name in settled for name in node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return spread


class _Spread(nn.Module):
    """A constant for every item of an input: ``Expand`` to sizes of which one is the batch."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, value: Tensor, like: Tensor) -> Tensor:
        own = [1] * (len(self.sizes) - value.dim()) + list(value.shape)
        return value.expand([
            like.shape[0] if size < 0 else mine if size == 1 else size
            for size, mine in zip(self.sizes, own, strict=True)
        ])  # fmt: skip


def _spread_batch(module: Any, spread: Mapping[str, tuple[str, list[int]]]) -> None:
    """Let the nodes that expand to the batch take it from an input."""
    for node in module.onnx_model.graph.node:
        if node.output[0] in spread:
            source, sizes = spread[node.output[0]]
            setattr(module, module.mapping[node.output[0]], _Spread(sizes))
            node.input[1] = source
            module.needed_by.setdefault(source, set()).add(node.output[0])


class _Fixed(nn.Module):
    """An operation of which all but the first input is known."""

    def __init__(self, function: Callable[..., Tensor], *numbers: Any) -> None:
        super().__init__()
        self.function, self.numbers = function, numbers

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value, *self.numbers)


def _reshaped(value: Tensor, sizes: list[int]) -> Tensor:
    return value.reshape([value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _padded(value: Tensor, pads: list[int]) -> Tensor:
    ends = len(pads) // 2
    sides = [side for axis in reversed(range(ends)) for side in (pads[axis], pads[axis + ends])]
    return nn.functional.pad(value, sides)


def _averaged(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.mean(dim=axes, keepdim=keep)


def _summed(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.sum(dim=axes, keepdim=keep)


def _sliced(value: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    index = [slice(None)] * value.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(max(start, -_FAR), min(end, _FAR), step)
    return value[tuple(index)]


_FAR = 1 << 40
"""Beyond the end of every axis."""


def _fix_numbers(onnx: Any, module: Any) -> None:
    """Read what is constant in the file now: sizes and axes, whose values a capture does not look at; norms whole."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in module.onnx_model.graph.initializer}
    for node in module.onnx_model.graph.node:
        if len(node.input) < 2 or not all(name in constants for name in node.input[1:]):
            continue
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        values = [constants[name] for name in node.input[1:]]
        if node.op_type == "LayerNormalization" and len(node.output) == 1:
            fixed: nn.Module | None = _norm(values, options)
        else:
            numbers = all(value.dtype == np.int64 and value.ndim <= 1 for value in values)
            fixed = _fixed(node.op_type, [value.tolist() for value in values], options) if numbers else None
        if fixed is not None:
            setattr(module, module.mapping[node.output[0]], fixed)
            del node.input[1:]


def _norm(values: list[Any], options: Mapping[str, Any]) -> nn.Module | None:
    """``LayerNormalization`` over the last axes; ``None`` where its weights are spread over more of them."""
    scale = torch.from_numpy(values[0].copy())
    if options.get("axis", -1) != -scale.dim() or scale.dim() != 1:
        return None
    norm = nn.LayerNorm(scale.shape[0], options.get("epsilon", 1e-5), bias=len(values) > 1, dtype=scale.dtype)
    with torch.no_grad():
        for own, value in zip(norm.parameters(), values, strict=True):
            own.copy_(torch.from_numpy(value.copy()))
    return norm


def _fixed(kind: str, numbers: list[list[int]], options: Mapping[str, Any]) -> nn.Module | None:
    """An operation with these numbers; ``None`` where the converter's is taken."""
    first, keep = numbers[0], bool(options.get("keepdims", 1))
    if kind == "Reshape" and not (options.get("allowzero") and 0 in first):
        return _Fixed(_reshaped, first)
    if kind == "Pad" and len(numbers) == 1 and options.get("mode", b"constant") == b"constant":
        return _Fixed(_padded, first)
    if kind in ("ReduceMean", "ReduceSum") and first:
        return _Fixed(_averaged if kind == "ReduceMean" else _summed, first, keep)
    if kind == "Slice" and len(numbers) >= 2:
        axes = numbers[2] if len(numbers) > 2 else list(range(len(first)))
        steps = numbers[3] if len(numbers) > 3 else [1] * len(first)
        return _Fixed(_sliced, *numbers[:2], axes, steps) if min(steps, default=1) > 0 else None
    return None


def _compare(runtime: Any, file_bytes: Path, module: nn.Module, trials: list[dict[str, Any]]) -> None:
    """Raise where a module computes something else than a file."""
    session = runtime.InferenceSession(str(file_bytes), providers=["CPUExecutionProvider"])
    for given in trials:
        expected = session.run(None, given)
        with torch.no_grad():
            found = module(*(torch.from_numpy(value) for value in given.values()))
        for theirs, ours in zip(expected, [found] if isinstance(found, Tensor) else found, strict=True):
            wanted = torch.from_numpy(theirs).double()
            off = (ours.double() - wanted).abs().max() if ours.shape == wanted.shape and wanted.numel() else torch.inf
            if not float(off) <= _LIMIT * max(float(wanted.abs().max()), 1e-6):
                raise CaptureError(
                    f"{file_bytes} is another function in onnx2pytorch than in onnxruntime: outputs differ by "
                    f"{float(off):.2g}. Compile the torch.nn.Module that it was exported from"
                )
