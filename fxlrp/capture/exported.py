"""The second way to read a model: ``torch.export`` from example inputs.

It follows Python control flow and opens every function down to ATen. The batch stays
free; so do the other axes of integer inputs (token sequences). All else is specialised.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxlrp.capture.call import Call
from fxlrp.capture.captured import Captured, has_hooks
from fxlrp.capture.decompositions import decompositions
from fxlrp.capture.double import with_hooks, without_hooks
from fxlrp.capture.flat import Flat
from fxlrp.capture.followed import CAPTURING, functions_followed
from fxlrp.capture.functional import NotByNodeError, functional
from fxlrp.capture.grad_modes import open_grad_modes
from fxlrp.capture.program import OneBatchError, captured_of, one_batch_size
from fxlrp.capture.recurrent import lengths_kept
from fxlrp.common.errors import CaptureError
from fxlrp.common.items import FRONT, Items
from fxlrp.common.progress import stage

UNUSUAL = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
"""Batch sizes to export with."""

_UNGUARDED: dict[str, Any] = (
    {"check_guards": False} if "check_guards" in inspect.signature(ExportedProgram.module).parameters else {}
)
"""How to ask for the module of a program without checks of sizes."""



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
    if not has_hooks(model):
        return _read_double(model, without_hooks(model), call, tensors, output, fixed)
    captured, refused = None, None
    try:
        captured = _read_double(model, without_hooks(model), call, tensors, output, fixed)
        if _depends(captured):
            return captured
    except OneBatchError:
        raise
    except CaptureError as error:
        refused = error
    try:  # forward() may read what a hook keeps, which without it is nothing, or what an earlier call left
        return _read_double(model, with_hooks(model), call, tensors, output, fixed)
    except CaptureError:
        if captured is None and refused is not None:
            raise refused from refused.__cause__
        assert captured is not None
        return captured


def _depends(captured: Captured) -> bool:
    """Whether what is to be explained is computed from an input."""
    waiting: list[Any] = next(node for node in captured.graph.nodes if node.op == "output").args[0][:1]
    waiting, seen = list(waiting), set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        if node.op == "placeholder":
            return True
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return False


def _read_double(
    model: nn.Module, double: nn.Module, call: Call, tensors: Sequence[Tensor], output: Any, fixed: bool
) -> Captured:
    flat = Flat(double, call, output)
    own = tuple(tensor.detach() for tensor in tensors)
    usual = example_batch(tensors, call.graph_names, call.items)
    # Not every model lets the length of a sequence stay free, and some take another way for some sizes of the batch.
    frees = [True, False] if any(not floating for floating in call.floating) else [False]
    size = Dim("batch", min=1, max=2**31)
    tries: list[tuple[tuple[Tensor, ...], Any, bool]] = [(usual, size, free) for free in frees]
    tries += [(usual, Dim.AUTO, False)] + [(own, Dim.AUTO, False)] * (call.count(own) > 1)
    if call.items.whole:  # no axis is known to be free
        tries = [(own, Dim.AUTO, True), (own, None, False)]
    if fixed:
        tries = [(own, None, False)]
    with functions_followed(model, numbers=False), lengths_kept(model):
        captured, refused = _first(model, call, flat, tries, own, fixed)
        again = refused
        for flat.places in (False, True):
            if again is None or not _is_of_values(again):
                break
            answered, again = _first(model, call, flat, tries, own, fixed, asking=True)
            if again is not None and not fixed and call.count(own) == 1:  # for which alone the answers may hold
                answered, again = _first(model, call, flat, [(own, None, False)], own, True, asking=True)
            captured, refused = (answered, None) if again is None else (captured, refused)
    if isinstance(refused, CaptureError):
        raise refused
    if refused is not None:
        raise _refused(flat.model, refused) from refused
    assert captured is not None
    return captured


def _first(
    model: nn.Module, call: Call, flat: Flat, tries: Sequence[tuple[tuple[Tensor, ...], Any, bool]],
    own: tuple[Tensor, ...], fixed: bool, *, asking: bool = False,
) -> tuple[Captured | None, Exception | None]:  # fmt: skip
    """What the first of several ways to read the model gives that serves its own inputs, or why the first one failed.

    Args:
        model: the model.
        call: how it is called.
        flat: the model as it is read.
        tries: examples, what the axis of the batch is, and whether other axes stay free.
        own: the inputs.
        fixed: whether all sizes are those of the examples.
        asking: whether what forward() asks of integers is answered as for the examples.
    """
    refused: Exception | None = None
    captured: Captured | None = None
    for examples, batch, free in tries:
        try:
            if asking:
                flat.ask(examples)
            program, graph = _export(flat, examples, _axes(call, examples, batch, free=free))
            asks_batch = batch is Dim.AUTO
            captured = captured_of(model, call, flat, program, graph, examples, asks_batch=asks_batch, fixed=fixed)
            if captured.questions is not None and captured.questions.of_signal:
                return None, refused or ValueError("data-dependent")
            if examples is own or captured.serves(own):
                return captured, None
        except CaptureError as error:
            if refused is None:
                raise
            raise error from refused
        except Exception as error:
            if flat.refusal is not None:
                raise flat.refusal from None
            known = examples is own or _is_of_sizes(error) or _is_of_values(error)
            limited = not known and not flat.takes(examples)
            refused = refused or (one_batch_size(flat.model, _blamed(flat.model, error)) if limited else error)
            if batch is not Dim.AUTO and not free and not (_is_of_sizes(error) or asking or limited):
                break
    return captured, refused  # for other batches than this one, which a comparison with the model will tell


def _is_of_values(error: Exception) -> bool:
    """Whether an export failed because Python asks for a value."""
    return "data-dependent" in str(error) or isinstance(error, GuardOnDataDependentSymNode)


def _is_of_sizes(error: Exception) -> bool:
    """Whether an export failed because forward() asks for a size that was to stay free."""
    return "onstraint" in str(error) or "pecializ" in str(error)


def _export(
    flat: Flat, examples: tuple[Tensor, ...], axes: Any
) -> tuple[ExportedProgram, fx.Graph]:  # fmt: skip
    """The exported program, and its graph: functional, of operations that the vocabulary knows where torch has them."""
    with torch.no_grad(), torch.autocast(examples[0].device.type, enabled=False), quiet():
        stage("torch.export follows its code")
        program = torch.export.export(flat, examples, dynamic_shapes={"tensors": axes}, strict=False)
        open_grad_modes(program.graph_module)
        try:
            stage("its operations are opened")
            return program, functional(program.graph)
        except NotByNodeError:
            stage("torch.export takes its operations apart")
            program = program.run_decompositions(decompositions())
            return program, program.module(**_UNGUARDED).graph


def example_batch(
    tensors: Sequence[Tensor], names: Sequence[str] = (), items: Items = FRONT
) -> tuple[Tensor, ...]:
    """The examples, with a batch that hardly any other axis is as long as.

    A batch of one would be taken for a constant, and one that equals another axis, of an input or
    of what the model makes of it, for that axis.
    """
    if items.whole:
        return tuple(tensor.detach() for tensor in tensors)
    names = names or [""] * len(tensors)
    axes = [items.axis_of(name, tensor.dim()) for name, tensor in zip(names, tensors, strict=True)]
    sizes = zip(axes, (tensor.shape for tensor in tensors), strict=True)
    taken = {size for axis, shape in sizes for size in (*shape[:axis], *shape[axis + 1 :])}
    wanted = next(prime for prime in UNUSUAL if prime not in taken)
    index = torch.arange(wanted) % tensors[0].shape[axes[0]]
    return tuple(items.picked(names, [tensor.detach() for tensor in tensors], index))


def _axes(call: Call, examples: Sequence[Tensor], batch: Any, *, free: bool) -> tuple[dict[int, Any], ...]:
    """Which axes of each input stay free, and how."""
    axes: list[dict[int, Any]] = []
    items = call.items
    for name, floating, example in zip(call.graph_names, call.floating, examples, strict=True):
        opened = free and (items.whole or not floating)
        more: dict[int, Any] = dict.fromkeys(range(example.dim()), Dim.AUTO) if opened else {}
        axes.append(more if items.whole else {**more, items.axis_of(name, example.dim()): batch})
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
    if "batch" in str(error) and _is_of_sizes(error) and not _is_of_values(error):
        return one_batch_size(model, where)
    return CaptureError(
        f"{type(model).__name__} cannot be captured by torch.export{where}: {reason}\n"
        "Control flow on tensor values in forward() is the usual reason; move it out of forward(), write it with "
        "torch.where, or mark the function that holds it with torch.fx.wrap and register it."
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
