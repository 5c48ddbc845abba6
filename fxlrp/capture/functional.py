"""An exported graph made functional and known, operation by operation, where that can be.

``ExportedProgram.run_decompositions`` runs the whole model again, which for a transformer of 30 layers takes twice as
long as its export, and leaves most of the graph as it was. Here the graph is copied. An operation that the vocabulary
does not know is opened by itself. An operation in place becomes its functional form, where nobody reads the memory
afterwards under another name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx

from fxlrp.capture.decompositions import decompositions, is_composite
from fxlrp.vocabulary import VOCABULARY
from fxlrp.vocabulary.linear import spelled_out

_OF_NUMBERS = ("_operator", "math", "torch")
"""Modules whose functions compute sizes in an exported graph."""

_CASTS = frozenset({"to", "type_as", "_to_copy"})
_UNWRITTEN = frozenset({"detach_", "requires_grad_"})
"""Operations in place that write nothing."""
_RUNNING = ("train", "training")
"""The arguments that say that an operation does what it does in training."""


class NotByNodeError(Exception):
    """A graph cannot be made functional and known one node after the other."""


def functional(graph: fx.Graph) -> fx.Graph:
    """A copy of an exported graph, without operations in place and without those that the vocabulary does not know.

    Args:
        graph: that of a program as ``torch.export`` gives it; each node has its ``val``.

    Raises:
        NotByNodeError: memory is written to and then read under another name, there are functions beside those of
            ATen, or an operation cannot be opened by itself.
    """
    with sizes_kept([node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]):
        return _Copy(graph, decompositions(), {}).run()


@contextmanager
def sizes_kept(values: list[Any]) -> Iterator[None]:
    """Within, what is computed of the values of exported nodes is an example, too; sizes that are free stay so.

    Raises:
        NotByNodeError: at the end, where a size that was free became a number.
    """
    fake = detect_fake_mode(values)
    sizes = fake.shape_env if fake is not None else None
    before = sizes and (len(sizes.guards), len(sizes.replacements))
    with fake or nullcontext(), torch.no_grad():
        yield
    if (sizes and (len(sizes.guards), len(sizes.replacements))) != before:
        raise NotByNodeError("a size that was free is a number now")


def settle(node: fx.Node) -> None:
    """Let a call of an exported graph say what is known of the shapes of its operands, each with its ``val``."""
    arguments: Any = node.args
    if node.target is torch.ops.aten.squeeze.default:
        # Which axes are one long is known here; the batch is free, and stays.
        shape = arguments[0].meta["val"].shape
        node.target = torch.ops.aten.squeeze.dims
        node.args = (arguments[0], [axis for axis, size in enumerate(shape) if isinstance(size, int) and size == 1])
    elif node.target is torch.ops.aten.einsum.default and "." in str(arguments[0]):
        dims = [part.meta["val"].dim() for part in arguments[1]]
        node.args = (spelled_out(str(arguments[0]), dims), *arguments[1:])
    elif node.target is torch.ops.aten.cat.default:
        # Without the empty vectors that torch lets stand for any empty tensor (a new cache).
        parts = [part for part in arguments[0] if list(map(str, part.meta["val"].shape)) != ["0"]]  # or a symbol
        node.args = (parts, *arguments[1:])


class _Copy:
    """Copies a graph node by node.

    Args:
        graph: the graph.
        ways: torch's decompositions, by operation.
        opened: by operation and kind of arguments, what it was found to consist of.
    """

    def __init__(self, graph: fx.Graph, ways: dict[Any, Any], opened: dict[Any, fx.Graph]) -> None:
        self.old = graph
        self.new = fx.Graph()
        self.ways = ways
        self.opened = opened
        self.values: dict[fx.Node, Any] = {}  # what each old node is in the copy
        self.memory: dict[Any, list[fx.Node]] = {}  # the old nodes that share it
        self.given = {_memory(node) for node in graph.nodes if node.op == "placeholder"}
        order = {node: place for place, node in enumerate(graph.nodes)}
        self.order = order
        self.last_use = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}

    def run(self) -> fx.Graph:
        for node in self.old.nodes:
            self.values[node] = self._copied(node)
            self.memory.setdefault(_memory(node), []).append(node)
        return self.new

    def _copied(self, node: fx.Node) -> Any:
        target: Any = node.target
        if node.op in ("placeholder", "output"):
            return self._same(node, target)
        if node.op != "call_function":
            raise NotByNodeError(f"{node.op} {target}")
        if target is operator.getitem and not isinstance(self.values[node.all_input_nodes[0]], fx.Node):
            return self.values[node.all_input_nodes[0]][node.args[1]]  # of an operation that was opened
        if not isinstance(target, torch._ops.OpOverload):
            if isinstance(target, torch._ops.OperatorBase) or getattr(target, "__module__", "") not in _OF_NUMBERS:
                raise NotByNodeError(f"{target} is no operation")
            return self._same(node, target)
        if target.overloadpacket.__name__ in _UNWRITTEN:
            return self.values[node.all_input_nodes[0]]
        if target._schema.is_mutable:
            return self._out_of_place(node)
        return self._known(node, target)

    def _known(self, node: fx.Node, target: torch._ops.OpOverload) -> Any:
        """A call of ``target``, opened where the vocabulary does not know it."""
        name = target.overloadpacket.__name__
        if name in _CASTS and _is_same(node, node.all_input_nodes[0]):
            return self.values[node.all_input_nodes[0]]
        if VOCABULARY.overload(target) is not None:
            if any(_argument(node, each) for each in _RUNNING):
                raise NotByNodeError(f"{target} does what it does in training")
            return self._same(node, target)
        if name.startswith(("sym_", "_assert")) or not (target in self.ways or is_composite(target)):
            return self._same(node, target)
        return self._open(node, target)

    def _same(self, node: fx.Node, target: Any) -> fx.Node:
        new = self.new.node_copy(node, lambda old: self.values[old])
        new.target = target
        return new

    def _out_of_place(self, node: fx.Node) -> Any:
        """The functional form of an operation in place; later readers of the memory read what it gives."""
        target, written, memory = _functional_form(node.target), node.args[0], _memory(node)
        if target is None or not isinstance(written, fx.Node) or memory is None or memory in self.given:
            raise NotByNodeError(f"{node.target} in place")
        readers = [other for other in self.memory[memory] if self.last_use[other] > self.order[node]]
        if any(self.values[other] is not self.values[written] for other in readers):
            raise NotByNodeError(f"{node.target} on memory that is read under another name")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        if not _is_alike(target(*args, **kwargs), node.meta["val"]):
            raise NotByNodeError(f"{target} gives another kind of value than {node.target}")
        new = self._known(node, target)
        self.values.update(dict.fromkeys(readers, new))
        return new

    def _open(self, node: fx.Node, target: torch._ops.OpOverload) -> Any:
        """The operations that torch makes of one."""
        sources = node.all_input_nodes
        places = {source: f"%{place}" for place, source in enumerate(sources)}
        arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        key = target, repr(arguments), *(_described(source.meta["val"]) for source in sources)
        if key not in self.opened:
            self.opened[key] = self._parts(node, target)
        values: dict[fx.Node, Any] = {}
        given = iter(sources)
        for part in self.opened[key].nodes:
            if part.op == "placeholder":
                values[part] = self.values[next(given)]
            elif part.op == "output":
                return fx.node.map_arg(part.args[0], values.__getitem__)
            else:
                new = self.new.node_copy(part, values.__getitem__)
                new.meta = {**node.meta, "val": part.meta.get("val")}
                values[part] = new
        raise AssertionError("a graph without an output")

    def _parts(self, node: fx.Node, target: torch._ops.OpOverload) -> fx.Graph:
        sources = node.all_input_nodes

        def call(*values: Any) -> Any:
            by_source = dict(zip(sources, values, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), by_source.__getitem__)
            return target(*args, **kwargs)

        ways = {target: self.ways.get(target, target.decompose)}
        try:
            traced = make_fx(call, ways, pre_dispatch=True)(*(source.meta["val"] for source in sources))
        except Exception as error:  # whatever torch makes of an operation that cannot be opened
            raise NotByNodeError(f"{target} cannot be opened by itself: {error}") from error
        if any(part.target is target for part in traced.graph.nodes):
            raise NotByNodeError(f"{target} is made of itself")
        return _Copy(traced.graph, self.ways, self.opened).run()


def _functional_form(target: Any) -> Any:
    """``add`` for ``add_``; ``None`` where there is none, or where more than the first argument is written to."""
    name, schema = target.overloadpacket.__name__, target._schema
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    alone = written[:1] == [True] and not any(written[1:])
    if not alone or not name.endswith("_") or name == "set_" or torch.Tag.inplace_view in target.tags:
        return None
    packet = getattr(torch.ops.aten, name[:-1], None) if target.namespace == "aten" else None
    overloads = [getattr(packet, form) for form in packet.overloads()] if packet is not None else []
    takes = _takes(target)  # the overloads need not go by the same names: pow_.Scalar is pow.Tensor_Scalar
    return next((form for form in overloads if not form._schema.is_mutable and _takes(form) == takes), None)


def _takes(overload: Any) -> list[str]:
    """The types of what an overload takes, in order."""
    return [str(argument.type) for argument in overload._schema.arguments]


def _argument(node: fx.Node, name: str) -> Any:
    """The argument of a call of an operation by its name; ``None``: it has none of this name."""
    target: Any = node.target
    for place, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None


def _memory(node: fx.Node) -> Any:
    """Which memory the value of an exported node is in: of views and what they are views of, the same."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) and not value.is_sparse else None


def _is_same(node: fx.Node, source: fx.Node) -> bool:
    """Whether a cast gives what it was given."""
    own, other = node.meta["val"], source.meta["val"]
    return _is_alike(own, other) and own.device == other.device


def _is_alike(own: Any, other: Any) -> bool:
    tensors = isinstance(own, Tensor) and isinstance(other, Tensor)
    return tensors and own.dtype == other.dtype and str(tuple(own.shape)) == str(tuple(other.shape))


def _described(value: Any) -> str:
    """A value as far as it matters to what an operation is made of."""
    if isinstance(value, list | tuple):
        return str(list(map(_described, value)))
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value}"
    return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()} {value.requires_grad}"
