"""From an exported program to what capture hands on: names, shapes, batches, and the modules around each node."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxlrp.capture.answers import Questions
from fxlrp.capture.call import Call
from fxlrp.capture.captured import Captured, Shape, Tensors, attribute
from fxlrp.capture.flat import Flat
from fxlrp.capture.functional import settle
from fxlrp.common.errors import CaptureError

_REPEATED = re.compile(r"@\d+")
_PREFIX = "model"


class OneBatchError(CaptureError):
    """forward() is written for one size of the batch; read for that size alone it may yet be explained."""


def one_batch_size(model: nn.Module, where: str = "") -> CaptureError:
    """The error of a model that is written for one batch size; ``where`` is the line that asks for it."""
    return OneBatchError(
        f"{type(model).__name__} cannot be captured by torch.export{where}: its forward() is written for one batch "
        "size only, or the first axis of its input is not the batch; take the size from the input's shape"
    )


def captured_of(
    model: nn.Module, call: Call, flat: Flat, program: ExportedProgram, read: fx.Graph,
    examples: Sequence[Tensor], *, asks_batch: bool, fixed: bool,
) -> Captured:  # fmt: skip
    """What an exported program says of a model.

    Args:
        model: the model.
        call: how it is called.
        flat: the model as it was exported.
        program: what was exported.
        read: its graph, functional.
        examples: the tensors that it was exported with.
        asks_batch: whether forward() asked for the size of the batch.
        fixed: whether all sizes are those of the examples.

    Raises:
        CaptureError: it holds for one batch size only, or chooses between functions by a value.
    """
    held, owner = _held(program), read.owning_module or model
    graph = fx.Graph()
    constants: Tensors = {}
    nodes: dict[fx.Node, fx.Node] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = {name for name, _ in named}
    types = {path: type(part) for path, part in model.named_modules()}
    inputs = iter(call.graph_names)
    shapes: dict[str, Shape] = {}
    questions: Questions | None = None
    items = call.items
    for node in read.nodes:
        if node.op == "placeholder" and node.name not in held:
            if not isinstance(node.meta["val"], Tensor):
                raise CaptureError(
                    f"{type(model).__name__} makes an object in forward() that no graph holds, such as a "
                    "torch.Generator: make what comes of it when the model is built, and keep it as a buffer"
                )
            name = next(inputs)
            new = graph.placeholder(name)
            sizes = [str(size) for size in node.meta["val"].shape]  # an axis may have turned out to be fixed
            if not items.whole:
                axis = items.axis_of(name, len(sizes))
                if sizes[axis].isdigit() and not fixed:  # and torch need not say so
                    raise one_batch_size(model)
                sizes[axis] = "batch"  # which batches are served is told by itself
            shapes[name] = tuple(int(size) if size.isdigit() else size for size in sizes)
        elif node.op in ("get_attr", "placeholder"):
            path = held.get(node.name, str(node.target))
            name = path.removeprefix(_PREFIX + ".")
            if name not in tensors:  # a constant that tracing made, wherever export put it
                value = program.constants[path] if node.op == "placeholder" else attribute(owner, path)
                if not isinstance(value, Tensor):
                    raise CaptureError(
                        f"{type(model).__name__} chooses between functions by a value, with torch.cond or another "
                        "higher-order operation of torch, which has no rule: write it with torch.where, or choose "
                        "outside of the model"
                    )
                constants[name] = value.detach()
            new = graph.get_attr(name)
        elif node.op == "output":
            (returned,) = node.args
            outputs = [nodes[v] if isinstance(v, fx.Node) else v for v in returned]
            outputs, asked = outputs[: len(outputs) - flat.told.count], outputs[len(outputs) - flat.told.count :]
            if asked:
                questions = Questions(graph, asked, flat.told.answers.given)
            new = graph.output(outputs)
        else:
            new = graph.node_copy(node, lambda n: nodes[n])
        nodes[node] = new
        new.meta = {
            "val": node.meta.get("val"),
            "stack_trace": node.meta.get("stack_trace"),
            "nn_module_stack": _module_stack(node, new, types),
        }
        settle(new)
    integers = frozenset(
        name for name, floating in zip(call.graph_names, call.floating, strict=True) if not floating
    )
    count = call.count(examples)
    size = 0 if items.whole else count
    batches = (count, count) if fixed else (1, math.inf) if items.whole else _batches(program, call)
    return Captured(
        graph, model, flat.returns, constants, "export", integers, shapes,
        batches, size, asks_batch or fixed, items=items, questions=questions,
    )


def _held(program: ExportedProgram) -> dict[str, str]:
    """By the placeholder of an exported graph that is no input: the name of the tensor that it stands for."""
    signature = program.graph_signature
    tables = signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants
    return {placeholder: name for table in tables for placeholder, name in table.items()}


def _batches(program: ExportedProgram, call: Call) -> tuple[int, float]:
    """The smallest and the largest batch for which the model takes the way that was read.

    torch takes two for the smallest that it can leave free; whether one is alike, a comparison with the model tells.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    first = next(value for value in inputs if isinstance(value, Tensor))
    size = first.shape[call.items.axis_of(call.graph_names[0], first.dim())]
    limits = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
    if limits is None:
        return 1, math.inf
    smallest, largest = int(limits.lower), float(limits.upper) if limits.upper < 2**31 else math.inf
    return (1 if smallest <= 2 else smallest), largest


def _module_stack(node: fx.Node, new: fx.Node, types: dict[str, type[nn.Module]]) -> OrderedDict[str, Any]:
    """The modules around a node as symbolic tracing tells them: name of the call -> (path, type).

    Args:
        node: the node of the export.
        new: the same node as it is captured.
        types: the modules of the model.
    """
    stack: OrderedDict[str, Any] = OrderedDict()
    for key, (called, _) in (node.meta.get("nn_module_stack") or {}).items():
        path = _REPEATED.sub("", called.removeprefix(_PREFIX).removeprefix("."))
        if path in types and path:
            repeated = _REPEATED.findall(key)  # the n-th call again: torch tells it of the key
            stack[path + (repeated[-1] if repeated else "")] = (path, types[path])
    # A module that is not called but only lends its weight (the projection of nn.MultiheadAttention).
    innermost = next(reversed(stack.values()))[0] if stack else ""
    for source in new.all_input_nodes:
        if source.op == "get_attr" and str(source.target).endswith(".weight"):
            owner = str(source.target).removesuffix(".weight")
            if owner in types and owner != innermost and owner.startswith(f"{innermost}." if innermost else ""):
                stack[owner] = (owner, types[owner])
    return stack
