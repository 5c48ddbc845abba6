"""Checks of inputs, made before any work."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from fxlrp.capture import Call
from fxlrp.capture.captured import Shape
from fxlrp.capture.objects import opened
from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import InputError
from fxlrp.common.items import FRONT, Items
from fxlrp.passes.channel_axes import Shapes
from fxlrp.passes.facts import facts
from fxlrp.passes.layers import channels, tensor_of, weight_shape
from fxlrp.passes.lookups import is_cast, is_counted_as_it_is
from fxlrp.passes.windows import Patch, patch_of
from fxlrp.vocabulary import Kind


@dataclass(frozen=True)
class InputSpec:
    """What the graph says of an input.

    Attributes:
        name: its name in ``forward``.
        rank: how many axes it has, the batch included; ``None`` where the graph does not say.
        axis, size: an axis of fixed size, such as (1, 3) for RGB channels.
        integer: whether it holds integers or booleans: token numbers, a mask.
        entries: how many rows the embedding has that it is looked up in.
        cast: whether forward() makes integers of it before each lookup, so that it may be given as numbers.
        shape: its shape where the capture fixed it: numbers, and names for free axes.
        numbers: whether integers may stand for floating point numbers: the model casts them before it computes.
        patch: the height and width of the patches in which a picture is read; ``None``: it is read by pixels.
    """

    name: str
    rank: int | None = None
    axis: int | None = None
    size: int | None = None
    integer: bool = False
    entries: int | None = None
    cast: bool = False
    shape: Shape | None = None
    numbers: bool = False
    patch: Patch | None = None

    def takes(self, floating: bool) -> bool:
        """Whether the graph serves such a tensor here, or would say what is wrong with it.

        Where it is not known what the input feeds, integers in place of floating point numbers (a
        mask) call for a graph of their own.
        """
        if floating and self.integer and self.cast:
            return False
        layered = self.axis is not None or self.entries is not None
        return layered or floating != self.integer or (self.numbers and not floating)

    def fits_capture(self, value: Tensor) -> bool:
        """Whether a tensor has the shape that the capture fixed, where it fixed one."""
        if self.shape is None or value.dim() != len(self.shape):
            return True  # another number of axes is an error of the caller's
        return all(isinstance(size, str) or size == own for size, own in zip(self.shape, value.shape, strict=True))


def input_specs(forward: fx.GraphModule, shapes: Mapping[str, Shape]) -> list[InputSpec]:
    """What capture and the first layers say of each input of an annotated forward graph."""
    specs = []
    for node in forward.graph.nodes:
        if node.op == "placeholder":
            spec = _integers(node, forward) if facts(node).integer else _spec(node, forward)
            numbers = not facts(node).integer and bool(node.users) and all(map(_casts, node.users))
            specs.append(replace(
                spec, shape=shapes.get(str(node.target)), numbers=numbers, patch=patch_of(node, forward)
            ))  # fmt: skip
    if not all(spec.numbers for spec in specs):  # beside other inputs, integers that are cast are a mask
        specs = [replace(spec, numbers=False) for spec in specs]
    return specs


def _casts(user: fx.Node) -> bool:
    """Whether an operation makes floating point numbers of integers, or asks for a shape alone."""
    return not facts(user).signal or user.target in (torch.ops.aten.to.dtype, torch.ops.aten.div.Tensor)


def _integers(placeholder: fx.Node, forward: fx.GraphModule) -> InputSpec:
    lookups = [n for n in forward.graph.nodes if n.op == "call_function" and facts(n).source is placeholder]
    cast = bool(lookups) and all(map(is_cast, lookups))
    lookups = [n for n in lookups if is_counted_as_it_is(n)]
    tables = [tensor_of(lookup.args[0], forward) for lookup in lookups]
    entries = [table.shape[0] for table in tables if table is not None]
    return InputSpec(str(placeholder.target), integer=True, entries=min(entries, default=None), cast=cast)


def _spec(placeholder: fx.Node, forward: fx.GraphModule) -> InputSpec:
    waiting, seen, padded = [placeholder], set(), dict[fx.Node, int]()  # how many axes were padded, from the last on
    while waiting:
        node = waiting.pop(0)
        for user in node.users:
            node_facts = facts(user)
            if user in seen or not node_facts.signal:
                continue
            seen.add(user)
            shape, size = weight_shape(user, forward), channels(user, forward)
            if shape is not None and size is not None:
                layered = node_facts.operation is not None and node_facts.operation.name == "linear"
                if padded.get(node, 0) >= (1 if layered else len(shape) - 1):  # the axis was made longer
                    return InputSpec(str(placeholder.target))
                # A convolution also takes one item without an axis for the batch.
                rank = None if layered or facts(placeholder).batch is None else len(shape)
                return InputSpec(str(placeholder.target), rank, -1 if layered else 1 - len(shape), size)
            scalars = all(not isinstance(a, fx.Node) or a is node for a in user.all_input_nodes)
            pads = "pad" in str(user.target)
            if (node_facts.kind is Kind.POINTWISE and scalars) or pads:
                waiting.append(user)
                padded[user] = max(padded.get(node, 0), _padded_axes(user) if pads else 0)
    return InputSpec(str(placeholder.target))


def _padded_axes(node: fx.Node) -> int:
    """How many axes a padding reaches, counted from the last."""
    pads: Any = node.args[1]
    return len(pads) // 2 if isinstance(pads, list | tuple) else 64


def check_kinds(values: Any) -> None:
    """Raise where a tensor among the arguments of a call is of a kind that no model is explained on.

    Raises:
        InputError: it is sparse, nested, quantised or complex.
    """
    for path, value in pytree.tree_leaves_with_path(opened(values)):
        if not isinstance(value, Tensor):
            continue
        kind = (
            "nested" if value.is_nested else "quantised" if value.is_quantized
            else "sparse" if value.layout is not torch.strided
            else "complex" if value.is_complex() else "fake, without values" if isinstance(value, FakeTensor) else ""
        )  # fmt: skip
        if kind:
            raise InputError(
                f"input{pytree.keystr(path)} is {kind}: give a dense tensor of real numbers, (batch, ...)"
                + (", padded to one length" if kind == "nested" else "")
            )


def check_inputs(
    specs: Sequence[InputSpec], inputs: Sequence[Any], like: Tensor | None, items: Items = FRONT
) -> None:
    """Raise where the inputs cannot be what the model takes.

    Args:
        specs: what is known of each input.
        inputs: the inputs.
        like: a tensor of the model, for dtype and device; ``None`` where it has none.
        items: which axis of each input is the batch.
    """
    if len(inputs) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"the model takes {len(specs)} input(s) ({names}), not {len(inputs)}")
    items.check([spec.name for spec in specs])
    batch = None
    free: dict[str, tuple[str, int]] = {}
    for spec, value in zip(specs, inputs, strict=True):
        if not isinstance(value, Tensor):
            raise InputError(f"input {spec.name} must be a tensor, not {type(value).__name__}")
        if like is not None and value.device != like.device:
            raise InputError(f"input {spec.name} is on {value.device} and the model on {like.device}")
        if value.is_meta:
            raise InputError(f"input {spec.name} is on the meta device: it has no values to explain")
        _check_dtype(spec, value, like)
        _check_shape(spec, value, items, alone=len(specs) == 1)
        _check_captured_shape(spec, value, free)
        size = items.count([spec.name], [value])
        batch = size if batch is None else batch
        if size != batch:
            raise InputError(f"input {spec.name} has a batch of {size}, another one of {batch}")
        if not is_compiling():
            _check_values(spec, value)


def _check_dtype(spec: InputSpec, value: Tensor, like: Tensor | None) -> None:
    if spec.integer:
        if value.is_floating_point():
            raise InputError(f"input {spec.name} is {_name(value.dtype)}; the model takes integers, such as tokens")
        return
    if not value.is_floating_point():
        if spec.numbers:
            return
        raise InputError(
            f"input {spec.name} is {_name(value.dtype)}; the model takes floating point: "
            "scale and normalise it first"
        )
    if like is not None and value.dtype != like.dtype and not torch.is_autocast_enabled(value.device.type):
        raise InputError(
            f"input {spec.name} is {_name(value.dtype)} and the model is {_name(like.dtype)}: "
            f"convert the input with .to(torch.{_name(like.dtype)}), or the explainer with .to(...)"
        )


def _check_values(spec: InputSpec, value: Tensor) -> None:
    if not spec.integer and not bool(torch.isfinite(value).all()):
        raise InputError(f"input {spec.name} holds NaN or infinity; an explanation of it would mean nothing")
    if spec.entries is not None:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= spec.entries:
            wrong, last = (low if low < 0 else high), spec.entries - 1
            raise InputError(f"input {spec.name} holds {wrong}, and its embedding has entries 0 to {last}")


def _check_shape(spec: InputSpec, value: Tensor, items: Items, *, alone: bool) -> None:
    shape = tuple(value.shape)
    if spec.rank is not None and len(shape) != spec.rank:
        hint = "; give a batch of one as x.unsqueeze(0)" if len(shape) == spec.rank - 1 and items.in_front else ""
        raise InputError(f"input {spec.name} has shape {shape}, and the model takes {spec.rank} axes{hint}")
    # A number for each item is an input beside others.
    if not items.whole and len(shape) < (1 if spec.integer or not alone else 2):
        raise InputError(f"input {spec.name} has shape {shape}; the first axis must be the batch")
    if spec.axis is not None and len(shape) >= -spec.axis and shape[spec.axis] != spec.size:
        what = "features" if spec.axis == -1 else "channels"
        raise InputError(
            f"input {spec.name} has shape {shape}, and the model takes {spec.size} {what}, not {shape[spec.axis]}"
        )
    if 0 in shape:
        raise InputError(f"input {spec.name} is empty: its shape is {shape}")


def _check_captured_shape(spec: InputSpec, value: Tensor, free: dict[str, tuple[str, int]]) -> None:
    """Hold a shape against what the capture fixed; ``free`` collects what its free axes are this time."""
    if spec.shape is None:
        return
    shape = tuple(value.shape)
    sizes = [str(size) if isinstance(size, int) or size == "batch" else "any" for size in spec.shape]
    fixed = ", ".join(sizes)
    captured = f"the model was captured for ({fixed})"
    again = "compile it again for another shape, with example_inputs= of that shape"
    if len(shape) != len(spec.shape):
        raise InputError(f"input {spec.name} has shape {shape}, and {captured}: {again}")
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if size != wanted:
                raise InputError(f"input {spec.name} has shape {shape}, and {captured}; axis {axis} is fixed: {again}")
        elif wanted != "batch" and free.setdefault(wanted, (spec.name, size))[1] != size:
            other, length = free[wanted]
            raise InputError(f"input {spec.name} is {size} long in axis {axis}, and input {other} is {length}")


_OF_GRAPHS = (
    ". Nodes of a graph are no batch: give compile(…, batch=None), which makes one item of all inputs, nodes and edges"
)


LISTS = (
    "(the tensors were given in a list: items of one size are one tensor, torch.stack(items); of several sizes give "
    "one item after the other, item.unsqueeze(0))"
)


def holds_lists(call: Call) -> bool:
    """Whether tensors were given in a list."""
    return any(part.isdigit() for name in call.names for part in name.split(".")[1:])


def check_examples(call: Call, tensors: Sequence[Tensor]) -> None:
    """Raise where inputs cannot be examples to capture a model from."""
    call.items.check(call.graph_names)
    for name, tensor in zip(call.names, tensors, strict=True):
        if tensor.is_meta:
            raise InputError(f"input {name} is on the meta device: it has no values to explain")
        if not call.items.whole:
            _check_batch(name, tensor, call, tensors)
        if 0 in tensor.shape:
            raise InputError(f"input {name} is empty: its shape is {tuple(tensor.shape)}")


def _check_batch(name: str, tensor: Tensor, call: Call, tensors: Sequence[Tensor]) -> None:
    """Raise where an example has not as many items as the first."""
    items = call.items
    batch = items.count(call.names, tensors) if tensors[0].dim() else 0
    if tensor.dim() == 0 or items.count([name], [tensor]) != batch:
        where = ("first", "second")[items.axis_of(name)] if items.axis_of(name) < 2 else f"{items.axis_of(name) + 1}th"
        raise InputError(
            f"input {name} has shape {tuple(tensor.shape)}: the {where} axis of every tensor must be the batch"
            + (f", {batch} here" if batch else "")
            + ("" if tensor.is_floating_point() else _OF_GRAPHS)
        )


def forward_shapes(forward: fx.GraphModule, inputs: Sequence[Tensor]) -> Shapes:
    """The shapes that all values would have, found without computing where they do not depend on values.

    Raises:
        InputError: the model cannot take inputs of these shapes; the failing layer is named.
    """
    like = next((p for p in [*forward.parameters(), *forward.buffers()] if p.is_floating_point()), None)
    shaped = _ShapeInterpreter(forward)
    alike = [x if like is None else x.to(like) if x.is_floating_point() else x.to(like.device) for x in inputs]
    try:
        _run_fake(shaped, alike)
    except InputError as error:
        if not isinstance(error.__cause__, DynamicOutputShapeException | DataDependentOutputException):
            raise
        with torch.no_grad():  # how many places a mask picks is known when they are counted
            shaped.run(*alike)
    return shaped.shapes


def _run_fake(shaped: _ShapeInterpreter, inputs: Sequence[Tensor]) -> None:
    """Run on tensors that have no values."""
    # The error is told as ours, below; torch would also log it.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), _silenced(log), _uncached():
        shaped.run(*map(mode.from_tensor, inputs))


@contextmanager
def _silenced(log: logging.Logger) -> Iterator[None]:
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _uncached() -> Iterator[None]:
    """Without autocast's cache, which would keep a weight that was cast without computing, and serve it afterwards."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _ShapeInterpreter(fx.Interpreter):
    """Runs a forward graph on fake tensors, and tells which node cannot go on."""

    def __init__(self, forward: fx.GraphModule) -> None:
        super().__init__(forward)
        self.shapes: Shapes = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            path = facts(n).origin.path or n.name
            values = [self.env[a] for a in n.all_input_nodes[:1]]
            shapes = ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor))
            raise InputError(
                f"the model cannot take an input of this shape: at {path!r}, on {shapes}: {error}"
            ) from error
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
            self.shapes[n] = [v.shape for v in value]
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten._grouped_mm.default:  # on values the CPU multiplies what it refuses without values
            left, right = args[:2]
            return left.new_empty(*left.shape[:-1], right.shape[-1])
        return super().call_function(target, args, kwargs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arguments_of(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs, a tensor, a tuple of positional or a dict of keyword arguments, as those of a call."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,), {}
