"""Canonicalise: one spelling an operation, functional, without no-ops or dead code.

What carries signal becomes a call of a functional ATen operation from the vocabulary;
parameters and buffers become ``get_attr`` nodes; what carries none (shapes, weights
computed from parameters) stays as the model wrote it and is executed as it is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxlrp.capture import Captured, attribute, tensor_proxy
from fxlrp.capture.decompositions import can_be_decomposed, is_composite
from fxlrp.capture.symbolic import NOT_THE_MODEL
from fxlrp.common.errors import UnknownOperationError
from fxlrp.common.tensors import dense, dequantized, is_packed, plain_name, safe_name
from fxlrp.passes.aliases import IN_PLACE_OPERATORS, Aliases, called, overwrites
from fxlrp.passes.building import identifier, target_name
from fxlrp.passes.complex_calls import ComplexBuilder, holds_complex, of_constant
from fxlrp.passes.facts import KEY, Facts, Origin, facts
from fxlrp.passes.joined_numbers import PART, parted
from fxlrp.passes.lookups import table_index
from fxlrp.passes.refusals import check_fixed, check_real_output
from fxlrp.passes.signal import signal_nodes
from fxlrp.passes.sparse_values import SPARSE, is_sparse, made_dense
from fxlrp.vocabulary import VOCABULARY, Unsupported
from fxlrp.vocabulary.complex_values import ComplexPair
from fxlrp.vocabulary.embedding import lower_table
from fxlrp.vocabulary.operation import SHAPE
from fxlrp.vocabulary.rearrangement import in_memory, lower_as_strided
from fxlrp.vocabulary.routing import lower_getitem

_FRAME = re.compile(r'File "(.+)", line (\d+)')

SEVERAL = (nn.Sequential, nn.MultiheadAttention)
"""Modules of torch that are more than one operation."""

SELECTED = {"values": 0, "indices": 1}
"""What a maximum, a sort or a selection returns, by its names."""


def canonicalize(captured: Captured) -> fx.GraphModule:
    """Rewrite a captured graph in the canonical form, with :class:`Origin` known for every node.

    Raises:
        UnknownOperationError: some operations are not in the vocabulary; all are named.
    """
    return _Canonicalizer(parted(captured)).run()


class _Canonicalizer:
    """Visits the nodes of the captured graph in order and writes their canonical form."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.graph = fx.Graph()
        self.builder = ComplexBuilder(self.graph)
        self.builder.label = self._label
        self.builder.name = self._name
        self.signal, self.integers = signal_nodes(captured)
        self.aliases = Aliases(captured.graph)
        self.tensors: dict[str, fx.Proxy] = {}
        self.unknown: list[tuple[str, str]] = []
        self.final = False  # whether one of the unknown would be unknown to torch.export too
        self.current: fx.Node

    def run(self) -> fx.GraphModule:
        needed = _needed(self.captured.graph)
        # Inputs come first, so that none loses its name, and with it its value, to a parameter of the same name.
        for node in sorted(self.captured.graph.nodes, key=lambda node: node.op != "placeholder"):
            if node in needed or node.op == "placeholder":
                self.current = node
                check_fixed(node, origin_of(node))
                self._visit(node)
        if self.unknown:
            raise UnknownOperationError(
                self.captured.way == "symbolic" and not self.final,
                f"{type(self.captured.model).__name__} uses operations that the vocabulary does not know:\n"
                + "\n".join(f"  {line}" for line in _grouped(self.unknown))
                + "\nName each with fxlrp.vocabulary.register(Operation(...)): its ATen operation, its kind and its "
                "other spellings."
            )
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        names = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        tensors = {name: self.captured.tensor(plain_name(name)) for name in sorted(names)}
        return fx.GraphModule(tensors, self.graph, class_name=type(self.captured.model).__name__)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            values = self._map(node.args[0])
            if not self.unknown:
                check_real_output(values[0])
            values = [value.value() if isinstance(value, ComplexPair) else value for value in values]
            self._label(self.graph.output([v.node if isinstance(v, fx.Proxy) else v for v in values]))
        elif node.op == "placeholder":
            new = self.graph.placeholder(str(node.target), node.type, *node.args[:1])
            self._label(new)
            facts(new).integer = node in self.integers
            items = self.captured.items
            facts(new).batch = None if items.whole else items.axis_of(str(node.target))
            facts(new).fixed = self.captured.fixed
            self._bind(node, self.builder.proxy_of(new))
        elif node.op == "get_attr":
            self.aliases.bind(node, self.tensor(str(node.target)))
        elif node in self.signal or node.op == "call_module":
            self._lower(node)
        else:
            args, kwargs = self._map(node.args), self._map(node.kwargs)
            constant = self.builder.constant(node, args, kwargs)
            if isinstance(constant, fx.Proxy) and is_sparse(node, args, kwargs):
                constant.node.meta[SPARSE] = True
            value = node.meta.get("val")  # of no device where a file did not tell its sizes
            if isinstance(constant, fx.Proxy) and isinstance(value, torch.Tensor) and not value.is_meta:
                constant.node.meta[SHAPE] = tuple(value.shape)
            self.aliases.bind(node, constant)

    def _bind(self, node: fx.Node, value: Any) -> None:
        """Let a captured node stand for a value, of which the sizes are kept that the capture knows."""
        self.aliases.bind(node, value)
        known = node.meta.get("val")  # of no device where a file did not tell its sizes
        if isinstance(value, fx.Proxy) and isinstance(known, torch.Tensor) and not known.is_meta:
            facts(value.node).shape = tuple(size if isinstance(size, int) else None for size in known.shape)

    def _lower(self, node: fx.Node) -> None:
        args, kwargs = made_dense((self._map(node.args), self._map(node.kwargs)), self.builder)
        try:
            if (entries := table_index(node)) is not None:
                table, indices, behind = self._map((node.args[0], entries.indices, entries.behind))
                value = entries.indices.meta.get("val")
                rank = None if value is None else value.dim()
                self._bind(node, lower_table(table, indices, entries.axis, behind, rank))
                return
            lower, writes = self._spelling(node)
            value = lower(*args, **kwargs)
            if holds_complex(node.meta.get("val")) and not isinstance(value, ComplexPair):
                raise Unsupported("makes complex values of the input, of which nothing is known")
            self._bind(node, value)
            if writes or kwargs.get("inplace", False):
                self.aliases.overwrite(node)
        except (Unsupported, TypeError, AttributeError, fx.proxy.TraceError) as reason:
            what, where = self._describe(node)
            self.unknown.append((what, where + (f": {reason}" if str(reason) else "")))
            self.final = self.final or getattr(reason, "final", False) or _is_atomic(node)
            # A stand-in, so that all that is unknown can be told at once.
            self.aliases.bind(node, self.builder.stand_in(node, _unknown, args))

    def _spelling(self, node: fx.Node) -> tuple[Callable[..., Any], bool]:
        """How a call is lowered, and whether it overwrites its first argument."""
        target: Any = node.target
        if node.op == "call_module":
            lower = VOCABULARY.module(type(attribute(self.captured.model, target)))
            if lower is None:
                raise Unsupported
            return partial(lower, _ModuleView(self, target)), False
        if target is getattr:
            if node.args[1] in getattr(self.aliases.value(node.args[0]), "_fields", ()):  # type: ignore[arg-type]
                return getattr, False
            if node.args[1] in SELECTED:
                return (lambda value, name: operator.getitem(value, SELECTED[name])), False
            if (lowering := VOCABULARY.composed_method(str(node.args[1]))) is not None:
                return lambda value, name: lowering(value), False
            operation = VOCABULARY.method(str(node.args[1]))
            if operation is None:
                raise Unsupported
            call = operation.call
            return lambda value, name: call(value), False
        if target is operator.getitem:
            source = self.aliases.value(node.args[0])  # type: ignore[arg-type]
            if not isinstance(source, fx.Proxy):
                return operator.getitem, False
            operation = VOCABULARY.canonical(source.node.target)
            many = operation is not None and operation.outputs_many
            return (operator.getitem if many else lower_getitem), False
        if isinstance(target, torch._ops.OpOverload):
            lowering = VOCABULARY.overload(target)
            if lowering is lower_as_strided:  # by how the value lay in memory when the model was read
                order = in_memory(node.args[0].meta["val"])  # type: ignore[union-attr]
                return partial(lower_as_strided, order=order), False
            if lowering is not None:
                return lowering, False
            base, writes = _base(called(node))
            lowering = VOCABULARY.overload(getattr(getattr(torch.ops.aten, base, None), target._overloadname, None))
            if lowering is None:
                raise Unsupported
            return lowering, writes
        composed = VOCABULARY.composed_method if node.op == "call_method" else VOCABULARY.composed_function
        if (lowering := composed(target)) is not None:
            return lowering, False
        name = target if node.op == "call_method" else getattr(target, "__name__", "")
        operation = VOCABULARY.method(target) if node.op == "call_method" else VOCABULARY.function(target)
        writes = target in IN_PLACE_OPERATORS
        base, in_place = _base(name)
        if operation is None and base:
            if (lowering := VOCABULARY.composed_method(base)) is not None:
                return lowering, in_place
            operation, writes = VOCABULARY.method(base) or VOCABULARY.named(base), in_place
        if operation is None:
            raise Unsupported
        return operation.call, writes

    def tensor(self, name: str) -> fx.Proxy:
        """The node of a parameter or buffer, one for all its uses; its shape is known."""
        if name not in self.tensors:
            node = self.graph.create_node("get_attr", safe_name(name), name=identifier(name))
            self._label(node)
            # Of a buffer as of a parameter: a lowering may ask for its shape, which is no part of the graph.
            tensor = self.captured.tensor(name).detach()
            if is_packed(tensor):
                node = self.builder.create_proxy("call_function", dequantized, (self.builder.proxy_of(node),), {}).node
                tensor = dequantized(tensor)
            if tensor.layout is not torch.strided:
                node.meta[SPARSE], tensor = True, dense(tensor)
            proxy = tensor_proxy(self.builder, node, name, nn.Parameter(tensor, requires_grad=False))
            self.tensors[name] = of_constant(proxy) if tensor.is_complex() else proxy
        return self.tensors[name]

    def _map(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: self.aliases.value(v) if isinstance(v, fx.Node) else v)

    def _label(self, node: fx.Node) -> None:
        node.meta[KEY] = Facts(origin_of(self.current), part_of=self.current.meta.get(PART, ""))

    def _name(self, target: Any) -> str:
        """A leaf module's one operation is named by its path, others by path and operation."""
        modules = origin_of(self.current).modules
        name = target_name(target)
        if not modules:
            return name
        path, kind = modules[-1]
        leaf = kind.__module__.startswith("torch.nn.modules") and kind not in SEVERAL
        return identifier(path) if leaf else f"{identifier(path)}_{name}"

    def _describe(self, node: fx.Node) -> tuple[str, str]:
        """What a node calls, and where in the model."""
        target: Any = node.target
        if node.op == "call_module":
            what = f"module {type(attribute(self.captured.model, target)).__name__}"
        elif node.op == "call_method":
            what = f"method Tensor.{target}"
        elif target is getattr:
            what = f"attribute Tensor.{node.args[1]}"
        elif isinstance(target, torch._ops.OpOverload):
            what = str(target)
        else:
            what = f"{getattr(target, '__module__', None) or 'torch'}.{getattr(target, '__name__', target)}"
        origin = origin_of(node)
        where = f" in {origin.path!r}" if origin.path else ""
        return what, where + (f" ({origin.source})" if origin.source else "")


class _ModuleView:
    """A module as its lowering sees it: parameters and buffers are proxies, all else is as it is."""

    def __init__(self, canonicalizer: _Canonicalizer, path: str) -> None:
        self._canonicalizer = canonicalizer
        self._path = path
        self._module = attribute(canonicalizer.captured.model, path)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, nn.Module):
            return _ModuleView(self._canonicalizer, f"{self._path}.{name}")
        return self._canonicalizer.tensor(f"{self._path}.{name}") if isinstance(value, torch.Tensor) else value


def _grouped(unknown: list[tuple[str, str]]) -> list[str]:
    """One line for each operation: where it is first, and how often it is used."""
    places: dict[str, list[str]] = {}
    for what, where in unknown:
        places.setdefault(what, []).append(where)
    return [what + at[0] + (f", and {len(at) - 1} more" if len(at) > 1 else "") for what, at in places.items()]


def _is_atomic(node: fx.Node) -> bool:
    """Whether a call is one operation of torch that its export would not take apart either."""
    if node.op == "call_module":
        return False
    if isinstance(node.target, torch._ops.OpOverload):  # of a program that was exported before
        opened = node.target._schema.is_mutable or is_composite(node.target) or can_be_decomposed(called(node))
        return not opened
    if node.op == "call_function" and hasattr(node.target, "__code__"):
        return False
    name = called(node).rstrip("_")  # an export makes what is done in place functional
    packet = getattr(torch.ops.aten, name, None) if name else None
    if packet is None or can_be_decomposed(name):
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return all(not is_composite(overload) and VOCABULARY.overload(overload) is None for overload in overloads)


def _unknown(*args: Any) -> Any:
    raise AssertionError("a stand-in is never run")


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """What the output depends on, and all that overwrites memory (under whichever name)."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed or overwrites(node):
            needed.add(node)
            needed.update(node.all_input_nodes)
    return needed


def _base(name: str) -> tuple[str, bool]:
    """The operation of which this name is another form, or ``""``; and whether it overwrites its first argument.

    ``add_`` is ``add`` in place, and ``view_copy`` is ``view`` with memory of its own.
    """
    if name.endswith("_copy"):
        return name.removesuffix("_copy"), False
    in_place = name.endswith("_") and not name.endswith("__")
    return (name[:-1] if in_place else ""), in_place


def origin_of(node: fx.Node) -> Origin:
    """Where in the model a captured node comes from."""
    origin = node.meta.get("origin")
    if origin is None:
        stack = node.meta.get("nn_module_stack", {})
        modules = tuple((path, kind) for path, kind in stack.values())
        origin = node.meta["origin"] = Origin(
            modules[-1][0] if modules else "", modules, tuple(stack), _source(node.stack_trace)
        )
    return origin


def _source(stack_trace: str | None) -> str:
    """The innermost line of a stack trace that is neither torch's nor ours: ``file:line``."""
    lines = (line.strip() for line in (stack_trace or "").splitlines())
    found = [match.groups() for match in map(_FRAME.match, lines) if match]
    theirs = [(file, line) for file, line in found if not file.startswith(NOT_THE_MODEL)]
    return ":".join(theirs[-1]) if theirs else ""


