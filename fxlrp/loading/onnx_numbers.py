"""Sizes and axes in a file of ONNX, made numbers: a capture does not look at the values that the file computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

BATCHES = (1, 2, 3)
"""With which sizes in a file are computed: what differs between them depends on the batch."""


def session_of(runtime: Any, model: str | bytes) -> Any:
    """What runs a file, or the bytes of one, on the CPU, without a word."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Trials(NamedTuple):
    """Random inputs of a file by position, and what onnxruntime makes of them.

    Attributes:
        inputs: for each batch, an array for each input.
        outputs: likewise for each output.
        settled: whether no axis but the batch is free.
    """

    inputs: list[list[Any]]
    outputs: list[list[Any]]
    settled: bool


def settle_sizes(onnx: Any, runtime: Any, file: Any, trials: Trials) -> dict[str, tuple[str, list[int]]]:
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
    session = session_of(runtime, asked.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    found = [session.run(list(sizes), dict(zip(names, given, strict=True))) for given in trials.inputs]
    by_batch = {name: list(values) for name, *values in zip(sizes, *found, strict=True)}
    settled = {name: few for name, (few, *more) in by_batch.items() if all(np.array_equal(few, each) for each in more)}
    spread: dict[str, tuple[str, list[int]]] = {}
    for node in graph.node:
        shape = node.input[1] if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 else ""
        if shape in settled or shape not in sizes or len({value.shape for value in by_batch[shape]}) > 1:
            continue
        rows = np.stack(by_batch[shape])  # (batches, axes)
        differs = (rows != rows[0]).any(0)
        if differs.sum() != 1 or (node.op_type == "Reshape" and (rows < 0).any()):
            continue  # the converter may know what to do
        free = np.where(differs, -1, rows[0])
        if node.op_type == "Expand":
            if rows[:, differs].flatten().tolist() != list(BATCHES):
                continue
            spread[node.output[0]] = names[0], free.tolist()
        settled[f"{node.output[0]}_shape"] = free
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


def spread_batch(module: Any, spread: Mapping[str, tuple[str, list[int]]]) -> None:
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


def fix_numbers(onnx: Any, module: Any) -> None:
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
