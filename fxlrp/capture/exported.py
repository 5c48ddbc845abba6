"""The second way to read a model: ``torch.export`` from example inputs.

It follows Python control flow and opens every function down to ATen. The batch stays
free; so do the other axes of integer inputs (token sequences). All else is specialised.
"""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxlrp.capture.call import Call
from fxlrp.capture.captured import Captured, Shape, Tensors, attribute, flat_outputs
from fxlrp.common.errors import CaptureError

UNUSUAL = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
"""Batch sizes to export with."""

_REPEATED = re.compile(r"@\d+")
_PREFIX = "model"


class _Flat(nn.Module):
    """The model as a function of a flat list of tensors, returning one."""

    returns: pytree.TreeSpec

    def __init__(self, model: nn.Module, call: Call, output: Any) -> None:
        super().__init__()
        self.model = model
        self.call = (call, output)
        self.refusal: CaptureError | None = None
        self.training = False

    def forward(self, *tensors: Tensor) -> list[Any]:
        call, output = self.call
        args, kwargs = call.arguments(tensors)
        returned = self.model(*args, **kwargs)
        try:
            outputs, self.returns = flat_outputs(returned, output)
        except CaptureError as error:  # torch.export would wrap it
            self.refusal = error
            raise
        return outputs


def export(model: nn.Module, call: Call, tensors: Sequence[Tensor], output: Any = None) -> Captured:
    """Capture ``model`` with ``torch.export``.

    Args:
        model: the model, checked.
        call: how it is called.
        tensors: an example of each tensor input, (batch, ...).
        output: which of its outputs to explain.

    Raises:
        CaptureError: the model cannot be exported, or ``output`` names nothing.
    """
    flat = _Flat(model, call, output)
    examples = example_batch(tensors)
    sequences = any(not floating for floating in call.floating)
    try:
        program = _export(flat, examples, _axes(call, examples, free=sequences))
    except Exception as error:
        if flat.refusal is not None:
            raise flat.refusal from None
        if not sequences:
            raise _refused(model, error) from error
        try:  # not every model lets the length of a sequence stay free
            program = _export(flat, examples, _axes(call, examples, free=False))
        except Exception as error:
            raise _refused(model, error) from error
    return _captured(model, call, flat, program)


def _export(flat: _Flat, examples: tuple[Tensor, ...], axes: Any) -> torch.export.ExportedProgram:
    with torch.no_grad(), torch.autocast(examples[0].device.type, enabled=False), quiet():
        program = torch.export.export(flat, examples, dynamic_shapes={"tensors": axes}, strict=False)
        return program.run_decompositions({})


def example_batch(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The examples, with a batch that hardly any other axis is as long as.

    A batch of one would be taken for a constant, and one that equals another axis, of an input or
    of what the model makes of it, for that axis.
    """
    batch = tensors[0].shape[0]
    taken = {size for tensor in tensors for size in tensor.shape[1:]}
    wanted = next(prime for prime in UNUSUAL if prime not in taken)
    index = torch.arange(wanted) % batch
    return tuple(tensor.detach()[index.to(tensor.device)] for tensor in tensors)


def _axes(call: Call, examples: Sequence[Tensor], *, free: bool) -> tuple[dict[int, Any], ...]:
    batch = Dim("batch", min=1, max=2**31)
    axes = []
    for floating, example in zip(call.floating, examples, strict=True):
        more = {} if floating or not free else dict.fromkeys(range(1, example.dim()), Dim.AUTO)
        axes.append({0: batch, **more})
    return tuple(axes)


@contextmanager
def quiet() -> Iterator[None]:
    """torch.export logs and prints what it is about to raise; the error says it."""
    logs = [logging.getLogger(name) for name in ("torch.export", "torch._dynamo", "torch.fx", "torch._export")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _refused(model: nn.Module, error: Exception) -> CaptureError:
    reason = str(error).strip().split("\n\n")[0].split("\n  - ")[0]
    where = _blamed(model, error)
    if "batch" in str(error) and "pecializ" in str(error):
        return _one_batch_size(model, where)
    return CaptureError(
        f"{type(model).__name__} cannot be captured by torch.export{where}: {reason}\n"
        "Control flow on tensor values in forward() is the usual reason; move it out of forward(), write it with "
        "torch.where, or mark the function that holds it with torch.fx.wrap and register it."
    )


def _one_batch_size(model: nn.Module, where: str = "") -> CaptureError:
    return CaptureError(
        f"{type(model).__name__} cannot be captured by torch.export{where}: its forward() is written for one batch "
        "size only, or the first axis of its input is not the batch; take the size from the input's shape"
    )


def _blamed(model: nn.Module, error: Exception) -> str:
    """The innermost line outside torch in the traceback, and its module: ``" at file:line, in 'layer.0'"``."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not any(part in file for part in ("/torch/", "/fxlrp/capture/", "<")):
            found = f" at {file}:{trace.tb_lineno}"
            owner = trace.tb_frame.f_locals.get("self")
            if paths.get(id(owner)):
                found += f", in {paths[id(owner)]!r} ({type(owner).__name__})"
        trace = trace.tb_next
    return found


def _captured(model: nn.Module, call: Call, flat: _Flat, program: torch.export.ExportedProgram) -> Captured:
    options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module: Any = program.module(**options)
    graph = fx.Graph()
    constants: Tensors = {}
    nodes: dict[fx.Node, fx.Node] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = {name for name, _ in named}
    types = {path: type(part) for path, part in model.named_modules()}
    inputs = iter(call.names)
    shapes: dict[str, Shape] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            name = next(inputs).replace(".", "_")
            new = graph.placeholder(name)
            sizes = [str(size) for size in node.meta["val"].shape]  # an axis may have turned out to be fixed
            if sizes[0].isdigit():  # and torch need not say so
                raise _one_batch_size(model)
            shapes[name] = tuple(int(size) if size.isdigit() else size for size in sizes)
        elif node.op == "get_attr":
            name = str(node.target)
            name = name.removeprefix(_PREFIX + ".")
            if name not in tensors:  # a constant that tracing made, wherever export put it
                constants[name] = attribute(module, str(node.target)).detach()
            new = graph.get_attr(name)
        elif node.op == "output":
            (outputs,) = node.args
            new = graph.output([nodes[v] if isinstance(v, fx.Node) else v for v in outputs])
        else:
            new = graph.node_copy(node, lambda n: nodes[n])
            if node.target is torch.ops.aten.cat.default:
                new.args = ([nodes[part] for part in _not_empty(node)], *new.args[1:])
        nodes[node] = new
        new.meta = {
            "val": node.meta.get("val"),
            "stack_trace": node.meta.get("stack_trace"),
            "nn_module_stack": _module_stack(node, types),
        }
    integers = frozenset(
        name.replace(".", "_") for name, floating in zip(call.names, call.floating, strict=True) if not floating
    )
    return Captured(graph, model, flat.returns, constants, "export", integers, shapes)


def _not_empty(cat: fx.Node) -> list[fx.Node]:
    """What is concatenated, without the empty vectors that torch lets stand for any empty tensor (a new cache)."""
    parts: Any = cat.args[0]
    return [part for part in parts if tuple(part.meta["val"].shape) != (0,)]


def _module_stack(node: fx.Node, types: dict[str, type[nn.Module]]) -> OrderedDict[str, Any]:
    """The modules around a node as symbolic tracing tells them: name of the call -> (path, type)."""
    stack: OrderedDict[str, Any] = OrderedDict()
    for key, (called, _) in (node.meta.get("nn_module_stack") or {}).items():
        path = _REPEATED.sub("", called.removeprefix(_PREFIX).removeprefix("."))
        if path in types and path:
            repeated = _REPEATED.findall(key)  # the n-th call again: torch tells it of the key
            stack[path + (repeated[-1] if repeated else "")] = (path, types[path])
    # A module that is not called but only lends its weight (the projection of nn.MultiheadAttention).
    innermost = next(reversed(stack.values()))[0] if stack else ""
    for source in node.all_input_nodes:
        if source.op == "get_attr" and str(source.target).endswith(".weight"):
            owner = str(source.target).removeprefix(_PREFIX + ".").removesuffix(".weight")
            if owner in types and owner != innermost and owner.startswith(f"{innermost}." if innermost else ""):
                stack[owner] = (owner, types[owner])
    return stack
