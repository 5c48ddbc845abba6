"""Sizes and axes in a file of ONNX, made numbers: a capture does not look at the values that the file computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.loading.onnx_batch import Concat, Reshape


def session_of(runtime: Any, model: str | bytes) -> Any:
    """What runs a file, or the bytes of one, on the CPU, without a word."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def settle_sizes(onnx: Any, runtime: Any, file: Any, inputs: Sequence[Any]) -> None:
    """Write the sizes that a file computes as numbers into it, by running it.

    Args:
        onnx: the package.
        runtime: the package ``onnxruntime``.
        file: the file, no axis of whose inputs is free; it is changed in place.
        inputs: arrays to run it with.
    """
    graph = file.graph
    (sizes,) = _sizes(onnx, runtime, file, [inputs]) or [{}]
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in sizes.items())
    kept, needed = [], {value.name for value in graph.output}
    for node in reversed(graph.node):
        if any(name in needed for name in node.output) and not all(name in sizes for name in node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def grow_evenly(onnx: Any, runtime: Any, file: Any, batches: Sequence[int], inputs: Sequence[Sequence[Any]]) -> bool:
    """Whether all that a file makes of sizes grows by as much for each item: no number changes at a certain batch.

    Args:
        onnx: the package.
        runtime: the package ``onnxruntime``.
        file: the file.
        batches: numbers of items, three at least.
        inputs: arrays to run it with, for each of them.
    """
    first, second, *rest = batches
    few, more, *others = _sizes(onnx, runtime, file, inputs) or [{}] * len(batches)
    for name in few:
        a, b = few[name], more[name]
        if any(each[name].shape != a.shape for each in (more, *others)):
            continue  # a list with an entry for each item
        if a.dtype.kind == "b":
            if any((each[name] != a).any() for each in (more, *others)):
                return False
            continue
        growth = (b.astype(np.float64) - a) / (second - first)
        if any((each[name] != a + growth * (size - first)).any() for each, size in zip(others, rest, strict=True)):
            return False
    return True


def _sizes(onnx: Any, runtime: Any, file: Any, inputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """For each of some inputs, the values that depend on shapes alone, and on constants."""
    known = {tensor.name for tensor in file.graph.initializer}
    sizes: dict[str, None] = {}
    ragged: set[str] = set()  # whose shapes depend on values
    for node in file.graph.node:
        names = [name for name in node.input if name]
        if node.op_type in _RAGGED or not ragged.isdisjoint(names):
            ragged.update(node.output)
        elif node.op_type == "Constant":
            known.update(node.output)
        elif node.op_type == "Shape" or (names and all(name in sizes or name in known for name in names)):
            sizes.update(dict.fromkeys(node.output))
    if not sizes:
        return []
    asked = onnx.ModelProto()
    asked.CopyFrom(file)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sizes)
    session = session_of(runtime, asked.SerializeToString())
    given = [value.name for value in session.get_inputs()]
    runs = [session.run(list(sizes), dict(zip(given, each, strict=True))) for each in inputs]
    return [dict(zip(sizes, values, strict=True)) for values in runs]


_RAGGED = ("NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan")
"""Operations whose results have shapes that depend on values."""


def begin_at_zero(onnx: Any, file: Any) -> None:
    """Leave out initial states of recurrent layers that are zero, as where none is given: that fits any batch."""
    constants = {tensor.name: tensor for tensor in file.graph.initializer}
    for node in file.graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN") and len(node.input) > 5:
            states = [name for name in node.input[5:7] if name]
            zero = all(
                name in constants and not onnx.numpy_helper.to_array(constants[name]).any() for name in states
            )
            if zero and len(node.input) <= 7:  # the eighth, peepholes, would move
                del node.input[5:]


def read_views(onnx: Any, file: Any) -> None:
    """Write a gathering of all elements in their order, as exporters write some views, as the reshape that it is."""
    graph = file.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.value_info if value.type.tensor_type.HasField("shape")
    }  # fmt: skip
    for node in graph.node:
        if node.op_type != "Gather" or node.input[1] not in constants:
            continue
        index = onnx.numpy_helper.to_array(constants[node.input[1]])
        if shapes.get(node.input[0]) == [index.size] and np.array_equal(index.flatten(), np.arange(index.size)):
            name = f"{node.output[0]}_shape"
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(index.shape, dtype=np.int64), name))
            node.op_type, node.input[1] = "Reshape", name
            del node.attribute[:]


class _Fixed(nn.Module):
    """An operation, perhaps a module of the converter, of which all but the first input is known."""

    def __init__(self, function: Callable[..., Tensor], *numbers: Any) -> None:
        super().__init__()
        self.function, self.numbers = function, numbers

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value, *self.numbers)


class _Extremum(nn.Module):
    """The largest or the smallest of several values, element by element."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return reduce(self.function, values)


_EXTREMA = {"Max": torch.maximum, "Min": torch.minimum}


def _averaged(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.mean(dim=axes, keepdim=keep)


def _summed(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.sum(dim=axes, keepdim=keep)


def _sliced(value: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last = max(start, -_FAR), max(min(end, _FAR), -_FAR)
        if step < 0:  # torch takes no negative step
            size = int(value.shape[axis])
            first, last, _ = slice(first, last, step).indices(size)
            value, first, last = value.flip(axis), size - 1 - first, size - 1 - last
        value = torch.ops.aten.slice(value, axis, first, last, abs(step))
    return value


_FAR = 1 << 30
"""Beyond the end of every axis."""


def fix_numbers(onnx: Any, module: Any) -> None:
    """Read what is constant in the file now: sizes and axes, whose values a capture does not look at; norms whole."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in module.onnx_model.graph.initializer}
    for node in module.onnx_model.graph.node:
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        name = module.mapping[node.output[0]]
        if node.op_type == "Concat":
            setattr(module, name, Concat(options["axis"]))
        if node.op_type in _EXTREMA:  # the converter stacks the values
            setattr(module, name, _Extremum(_EXTREMA[node.op_type]))
        if len(node.input) < 2 or not all(given in constants for given in node.input[1:] if given):
            continue
        values = [constants.get(given) for given in node.input[1:]]
        if node.op_type == "LayerNormalization" and len(node.output) == 1:
            fixed: nn.Module | None = _norm(values, options)
        elif node.op_type in ("Resize", "Upsample"):
            fixed = _resize(getattr(module, name), values)
        elif node.op_type == "Pad":
            fixed = _Fixed(getattr(module, name), *(None if value is None else value.tolist() for value in values))
        elif all(value is not None and value.dtype in (np.int32, np.int64) and value.ndim <= 1 for value in values):
            numbers = [value.tolist() for value in values if value is not None]
            fixed = _fixed(node.op_type, getattr(module, name), numbers, options)
        else:
            fixed = None
        if fixed is not None:
            setattr(module, name, fixed)
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


def _resize(own: Any, values: list[Any]) -> nn.Module | None:
    """``Resize`` of the axes behind batch and channels; ``None`` where the converter's is taken."""
    old = own.opset_version < 11  # (x, scales), where now is (x, region, scales, sizes)
    scales, sizes = (values[-1], None) if old else [*values, None, None][1:3]
    if (old and own.mode != "nearest") or (scales is None) == (sizes is None):
        return None
    if scales is not None and list(scales[:2]) != [1, 1]:
        return None
    size = None if sizes is None else [int(each) for each in sizes[2:]]
    factor = None if scales is None else [float(each) for each in scales[2:]]
    return _Fixed(nn.functional.interpolate, size, factor, own.torch_mode(len(size or factor or [])), own.align_corners)


def _fixed(kind: str, own: Any, numbers: list[Any], options: Mapping[str, Any]) -> nn.Module | None:
    """An operation with these numbers; ``None`` where the converter's is taken.

    Args:
        kind: what it is called in the file.
        own: what the converter takes for it.
        numbers: its inputs but the first, each a list, or a number.
        options: its attributes.
    """
    first, keep = numbers[0], bool(options.get("keepdims", 1))
    if kind == "Reshape" and not (options.get("allowzero") and 0 in first):
        return Reshape(first)
    if kind in ("ReduceMean", "ReduceSum") and first:
        return _Fixed(_averaged if kind == "ReduceMean" else _summed, first, keep)
    if kind == "Slice" and len(numbers) >= 2:
        axes = numbers[2] if len(numbers) > 2 else list(range(len(first)))
        steps = numbers[3] if len(numbers) > 3 else [1] * len(first)
        return _Fixed(_sliced, *numbers[:2], axes, steps)
    if kind in ("Squeeze", "Unsqueeze", "Tile", "Expand"):
        return _Fixed(own, first)
    if kind == "CumSum":
        return _Fixed(own, first[0] if isinstance(first, list) else first)
    if kind in _ATTRIBUTES and first:
        one = len(first) == 1 and kind != "Split"  # of several axes it makes a tensor, which a capture cannot look at
        setattr(own, _ATTRIBUTES[kind], first[0] if one else first)
        return own if isinstance(own, nn.Module) else None
    return None


_ATTRIBUTES = {
    "Split": "split_size_or_sections", "TopK": "k",
    **{f"Reduce{kind}": "dim" for kind in ("Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
}
"""What the converter's modules keep their numbers as, where a file of older days gives them as attributes."""
