"""The second way to read a model: ``torch.export`` from example inputs.

It follows Python control flow and opens every function down to ATen. The batch stays
free; so do the other axes of integer inputs (token sequences). All else is specialised.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
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
from fxlrp.capture.decompositions import decompositions
from fxlrp.capture.double import without_hooks
from fxlrp.capture.followed import CAPTURING, functions_followed
from fxlrp.capture.recurrent import lengths_kept
from fxlrp.common.errors import CaptureError
from fxlrp.vocabulary.linear import spelled_out

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


def export(
    model: nn.Module, call: Call, tensors: Sequence[Tensor], output: Any = None, *, fixed: bool = False
) -> Captured:
    """Capture ``model`` with ``torch.export``.

    Args:
        model: the model, checked.
        call: how it is called.
        tensors: an example of each tensor input, (batch, ...).
        output: which of its outputs to explain.
        fixed: whether all sizes, that of the batch too, are those of the examples and no others.

    Raises:
        CaptureError: the model cannot be exported, or ``output`` names nothing.
    """
    with CAPTURING:
        return _read(model, call, tensors, output, fixed)


def _read(model: nn.Module, call: Call, tensors: Sequence[Tensor], output: Any, fixed: bool) -> Captured:
    flat = _Flat(without_hooks(model), call, output)
    usual, own = example_batch(tensors), tuple(tensor.detach() for tensor in tensors)
    # Not every model lets the length of a sequence stay free, and some take another way for some sizes of the batch.
    frees = [True, False] if any(not floating for floating in call.floating) else [False]
    size = Dim("batch", min=1, max=2**31)
    tries: list[tuple[tuple[Tensor, ...], Any, bool]] = [(usual, size, free) for free in frees]
    tries += [(usual, Dim.AUTO, False)] + [(own, Dim.AUTO, False)] * (own[0].shape[0] > 1)
    if fixed:
        tries = [(own, None, False)]
    refused: Exception | None = None
    with functions_followed(model, numbers=False), lengths_kept(model):
        for examples, batch, free in tries:
            try:
                program = _export(flat, examples, _axes(call, examples, batch, free=free))
                captured = _captured(model, call, flat, program, examples, asks_batch=batch is Dim.AUTO, fixed=fixed)
                if examples is own or captured.serves_batch(own[0].shape[0]):
                    return captured
            except CaptureError as error:
                if refused is None:
                    raise
                raise error from refused
            except Exception as error:
                if flat.refusal is not None:
                    raise flat.refusal from None
                refused = refused or error
                if batch is not Dim.AUTO and not free and not _is_of_sizes(error):
                    break
    if refused is None:
        return captured  # for other batches than this one, which a comparison with the model will tell
    raise _refused(flat.model, refused) from refused


def _is_of_sizes(error: Exception) -> bool:
    """Whether an export failed because forward() asks for a size that was to stay free."""
    return "onstraint" in str(error) or "pecializ" in str(error)


def _export(flat: _Flat, examples: tuple[Tensor, ...], axes: Any) -> torch.export.ExportedProgram:
    with torch.no_grad(), torch.autocast(examples[0].device.type, enabled=False), quiet():
        program = torch.export.export(flat, examples, dynamic_shapes={"tensors": axes}, strict=False)
        return program.run_decompositions(decompositions())


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


def _axes(call: Call, examples: Sequence[Tensor], batch: Any, *, free: bool) -> tuple[dict[int, Any], ...]:
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


class OneBatchError(CaptureError):
    """forward() is written for one size of the batch; read for that size alone it may yet be explained."""


def _one_batch_size(model: nn.Module, where: str = "") -> CaptureError:
    return OneBatchError(
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


def _captured(
    model: nn.Module, call: Call, flat: _Flat, program: torch.export.ExportedProgram, examples: Sequence[Tensor],
    *, asks_batch: bool, fixed: bool,
) -> Captured:
    options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module: Any = program.module(**options)
    graph = fx.Graph()
    constants: Tensors = {}
    nodes: dict[fx.Node, fx.Node] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = {name for name, _ in named}
    types = {path: type(part) for path, part in model.named_modules()}
    inputs = iter(call.graph_names)
    shapes: dict[str, Shape] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            name = next(inputs)
            new = graph.placeholder(name)
            sizes = [str(size) for size in node.meta["val"].shape]  # an axis may have turned out to be fixed
            if sizes[0].isdigit() and not fixed:  # and torch need not say so
                raise _one_batch_size(model)
            sizes[0] = "batch" if fixed else sizes[0]  # which batches are served is told by itself
            shapes[name] = tuple(int(size) if size.isdigit() else size for size in sizes)
        elif node.op == "get_attr":
            name = str(node.target)
            name = name.removeprefix(_PREFIX + ".")
            if name not in tensors:  # a constant that tracing made, wherever export put it
                value = attribute(module, str(node.target))
                if not isinstance(value, Tensor):
                    raise CaptureError(
                        f"{type(model).__name__} chooses between functions by a value, with torch.cond or another "
                        "higher-order operation of torch, which has no rule: write it with torch.where, or choose "
                        "outside of the model"
                    )
                constants[name] = value.detach()
            new = graph.get_attr(name)
        elif node.op == "output":
            (outputs,) = node.args
            new = graph.output([nodes[v] if isinstance(v, fx.Node) else v for v in outputs])
        else:
            new = graph.node_copy(node, lambda n: nodes[n])
            if node.target is torch.ops.aten.squeeze.default:
                # Which axes are one long is known here; the batch is free, and stays.
                shape: Any = node.all_input_nodes[0].meta["val"].shape
                new.target = torch.ops.aten.squeeze.dims
                single = [axis for axis, size in enumerate(shape) if isinstance(size, int) and size == 1]
                new.args = (new.args[0], single)
            if node.target is torch.ops.aten.einsum.default and "." in str(new.args[0]):
                parts: Any = node.args[1]
                new.args = (spelled_out(str(new.args[0]), [part.meta["val"].dim() for part in parts]), *new.args[1:])
            if node.target is torch.ops.aten.cat.default:
                new.args = ([nodes[part] for part in _not_empty(node)], *new.args[1:])
        nodes[node] = new
        new.meta = {
            "val": node.meta.get("val"),
            "stack_trace": node.meta.get("stack_trace"),
            "nn_module_stack": _module_stack(node, types),
        }
    integers = frozenset(
        name for name, floating in zip(call.graph_names, call.floating, strict=True) if not floating
    )
    size = examples[0].shape[0]
    return Captured(
        graph, model, flat.returns, constants, "export", integers, shapes,
        (size, size) if fixed else _batches(program), size, asks_batch or fixed,
    )


def _batches(program: torch.export.ExportedProgram) -> tuple[int, float]:
    """The smallest and the largest batch for which the model takes the way that was read.

    torch takes two for the smallest that it can leave free; whether one is alike, a comparison with the model tells.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    size = next(value for value in inputs if isinstance(value, Tensor)).shape[0]
    limits = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
    if limits is None:
        return 1, math.inf
    smallest, largest = int(limits.lower), float(limits.upper) if limits.upper < 2**31 else math.inf
    return (1 if smallest <= 2 else smallest), largest


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
