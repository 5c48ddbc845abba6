"""Lookups: where the signal of an integer input begins, and which of its numbers each entry was looked up for.

Token numbers carry no signal, so that nothing is emitted about how they are moved, cast or shifted by constants before
they are looked up. What has to be known of that is found here: the input they come from, where the batch is in what is
looked up, and where the relevance of an entry belongs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.passes.facts import facts
from fxlrp.steps.batch_axis import Position
from fxlrp.steps.declaration import primitive
from fxlrp.vocabulary import VOCABULARY, Kind, Operation

aten = torch.ops.aten

SHAPE_METHODS = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "get_device", "is_contiguous", "is_floating_point",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "element_size", "__len__", "is_complex",
    "is_conj",
})  # fmt: skip
SHAPE_FUNCTIONS = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "is_floating_point", "numel",
    "len", "sym_size", "sym_numel", "sym_stride", "zero", "fill", "is_complex", "is_conj",
})  # fmt: skip
"""Methods and functions that ask of a value no more than its shape."""

CASTS = frozenset({"long", "int", "to", "contiguous", "type", "_to_copy", "clone", "detach", "alias", "type_as"})
"""What leaves every number as it is."""
SHIFTS = frozenset({"add", "sub", "mul", "remainder", "clamp", "clamp_min", "clamp_max", "iadd", "isub", "mod"})
"""Arithmetic with constants, which makes other numbers of the same things: ``ids + offsets``."""
_SWAPS = frozenset({"t", "transpose", "swapaxes", "swapdims", "permute", "T", "mT", "movedim", "moveaxis"})


def name_of(node: fx.Node) -> str:
    """The short name of what a node calls, without the underscore of a form in place."""
    target: Any = node.target
    if target is getattr:
        return str(node.args[1])
    name = target if isinstance(target, str) else getattr(getattr(target, "overloadpacket", target), "__name__", "")
    return str(name).rstrip("_")


def is_moved(node: fx.Node) -> bool:
    """Whether a node only moves, casts or overwrites its first argument."""
    if node.op not in ("call_function", "call_method"):
        return False
    if name_of(node) in CASTS or node.target is operator.getitem:
        return True
    operation = _operation(node)
    # The first argument of `where` is the mask.
    return operation is not None and operation.kind is Kind.ROUTING and operation.name != "where"


def _operation(node: fx.Node) -> Operation | None:
    """What the vocabulary knows of a node of the captured or of the canonical graph."""
    if node.op == "call_method":
        return VOCABULARY.method(str(node.target))
    if isinstance(node.target, torch._ops.OpOverload):
        return VOCABULARY.spelled(node.target)
    return VOCABULARY.function(node.target)


def _goes_on(node: fx.Node) -> bool:
    """Whether what is looked up by a node is looked up by its first argument: it is moved, cast or shifted."""
    if is_moved(node):
        return True
    return name_of(node) in SHIFTS and isinstance(node.args[0], fx.Node) and not comes_from_input(node.args[1:])


def comes_from_input(arguments: Any) -> bool:
    """Whether values are made of an input, and not of its shape alone."""
    waiting, seen = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, fx.Node)], set()
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return not _is_size(node)
        if node not in seen:
            seen.add(node)
            of_shape = node.args[:1] if _is_size(node) else ()
            waiting.extend(each for each in node.all_input_nodes if each not in of_shape)
    return False


_OF_SHAPE = SHAPE_METHODS | SHAPE_FUNCTIONS | {"shape", "device", "dtype"}


def _is_size(node: fx.Node) -> bool:
    return node.op != "placeholder" and name_of(node) in _OF_SHAPE


def trail(index: Any) -> Iterator[fx.Node]:
    """The nodes from an index back to the input that it comes from; nothing where it comes from none."""
    nodes = []
    while isinstance(index, fx.Node) and index.op != "placeholder":
        if not _goes_on(index):
            return
        nodes.append(index)
        index = index.args[0]
    if isinstance(index, fx.Node):
        yield from (*nodes, index)


def index_of(node: fx.Node) -> Any:
    """The indices of a captured node that looks something up; ``None`` for any other."""
    at, name = _INDEX_AT.get(node.target, (None, ""))
    if node.op == "call_function" and at is not None:
        return node.args[at] if len(node.args) > at else node.kwargs.get(name)
    found = table_index(node)
    return None if found is None else found.indices


class TableIndex(NamedTuple):
    """How entries of a parameter or a buffer are picked: by which indices, of which axis, and what of each."""

    indices: fx.Node
    axis: int
    behind: tuple[Any, ...] = ()


def table_index(node: fx.Node) -> TableIndex | None:
    """How a captured node picks entries of a parameter or a buffer by an input; ``None`` for any other."""
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    entries = _entries(node)
    at = [place for place, entry in enumerate(entries) if isinstance(entry, fx.Node)]
    # What most nodes are is seen without a walk through the graph.
    if len(at) != 1 or any(entry != slice(None) for entry in entries[: at[0]]):
        return None
    found = TableIndex(entries[at[0]], at[0], tuple(entries[at[0] + 1 :]))
    return found if _is_table(node.args[0]) and comes_from_input(found.indices) else None


def _entries(node: fx.Node) -> list[Any]:
    """What a node is asked for along each axis of its first argument; nothing where it is no index."""
    if node.target is operator.getitem:
        index: Any = node.args[1]
        return list(index) if isinstance(index, tuple) else [index]
    if node.target is aten.index.Tensor:
        return [slice(None) if index is None else index for index in node.args[1]]  # type: ignore[union-attr]
    dim: Any = node.args[1] if name_of(node) == "index_select" and len(node.args) > 1 else None
    if isinstance(dim, int) and dim >= 0:
        return [slice(None)] * dim + [node.args[2] if len(node.args) > 2 else node.kwargs.get("index")]
    return []


def _is_table(value: Any) -> bool:
    """Whether a value is made of parameters and buffers alone."""
    return isinstance(value, fx.Node) and value.op != "placeholder" and not comes_from_input(value)


_INDEX_AT: dict[Any, tuple[int, str]] = {
    torch.nn.functional.embedding: (0, "input"),
    aten.embedding.default: (1, "indices"),
    torch.nn.functional.embedding_bag: (0, "input"),
    aten.embedding_bag.default: (1, "indices"),
    aten.embedding_bag.padding_idx: (1, "indices"),
    aten._embedding_bag.default: (1, "indices"),
    aten._embedding_bag_forward_only.default: (1, "indices"),
    torch.nn.functional.one_hot: (0, "input"),
    torch._C._nn.one_hot: (0, "input"),
    aten.one_hot.default: (0, "self"),
}


def position(node: fx.Node) -> Position | None:
    """Where the batch is in what a lookup gives of an input; ``None``: in front, each item one entry of the axis."""
    swapped, flat = False, False
    for moved in trail(_indices(node)):
        if moved.op == "placeholder":
            swapped ^= facts(moved).batch == 1
            break
        name = name_of(moved)
        swapped ^= name in _SWAPS
        flat = flat or name in ("reshape", "view", "flatten", "_unsafe_view", "ravel")
    return Position(1) if swapped else Position(0) if flat else None


def picked(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """Of which numbers a lookup takes some items, or all in another order, and by which index; ``None``: of none."""
    for moved in trail(_indices(node)):
        if moved.op != "placeholder" and (index := _index_of_items(moved)) is not None:
            return moved.args[0], index  # type: ignore[return-value]
    return None


def _index_of_items(node: fx.Node) -> fx.Node | None:
    """The index by which a node picks entries of the first axis."""
    name, index = name_of(node), None
    if node.target is operator.getitem:
        index = node.args[1][0] if isinstance(node.args[1], tuple) and node.args[1] else node.args[1]
    elif node.target is aten.index.Tensor:
        index = node.args[1][0]  # type: ignore[index]
    elif name == "index_select" and node.args[1:2] == (0,):
        index = node.args[2] if len(node.args) > 2 else node.kwargs.get("index")
    return index if isinstance(index, fx.Node) and not _is_size(index) else None


def _indices(node: fx.Node) -> Any:
    """The indices of a lookup in the canonical graph."""
    operation = facts(node).operation
    assert operation is not None
    return operation.arguments(node.args, node.kwargs)[operation.operand_names()[0]]


def place(node: fx.Node, relevance: Any, source: Any, again: Any) -> Any:
    """The relevance of a lookup in the shape of its input, and the features of an entry behind.

    Args:
        node: the lookup.
        relevance: what its entries received.
        source: the input.
        again: calls a node of the forward graph again, with another first argument.
    """
    moves = [moved for moved in trail(_indices(node)) if moved.op != "placeholder" and _changes_place(moved)]
    operations = [_operation(moved) for moved in moves]
    if not moves or any(operation is not None and operation.pads for operation in operations):
        return relevance  # with what was put around the numbers
    if all(name_of(moved) in _SWAPS for moved in moves) and len(moves) % 2:
        return relevance.transpose(0, 1)
    numbers = numbered(source)
    for moved in reversed(moves):
        numbers = again(moved, numbers)
    return gathered(relevance, numbers, source)


def _changes_place(node: fx.Node) -> bool:
    """Whether a node moves numbers: one that casts or shifts them, or writes over some, leaves each in its place."""
    operation = _operation(node)
    writes = operation is not None and bool(operation.loses or len(operation.operand_names()) > 1)
    return is_moved(node) and name_of(node) not in CASTS and not writes


def is_counted_as_it_is(node: fx.Node) -> bool:
    """Whether a lookup is by the numbers of its input themselves, none of them shifted or written over."""
    nodes = [moved for moved in trail(_indices(node)) if moved.op != "placeholder"]
    return all(name_of(moved) in CASTS or _changes_place(moved) for moved in nodes)


def is_cast(node: fx.Node) -> bool:
    """Whether the numbers of a lookup's input are made integers before it."""
    return any(map(makes_integers, trail(_indices(node))))


def makes_integers(node: fx.Node) -> bool:
    """Whether a node is a cast to integers."""
    arguments = [*node.args, *node.kwargs.values()]
    return name_of(node) in ("long", "int") or any(dtype in arguments for dtype in (torch.int64, torch.int32))


@primitive(linear="first")
def without_features(relevance: Tensor, source: Tensor) -> Tensor:
    """Relevance of what was looked up, summed to the shape of ``source``, whose numbers were cast for it."""
    return relevance.flatten(source.dim()).sum(-1)


@primitive
def numbered(source: Tensor) -> Tensor:
    """A number for each element, in the shape of ``source``."""
    return torch.arange(source.numel(), device=source.device).reshape(source.shape)


@primitive(linear="first")
def gathered(relevance: Tensor, numbers: Tensor, source: Tensor) -> Tensor:
    """Relevance brought to the elements of ``source`` that ``numbers`` counts, features behind."""
    features = relevance.shape[numbers.dim() :]
    entries = relevance.flatten(0, numbers.dim() - 1)
    flat = relevance.new_zeros(source.numel(), *features).index_add(0, numbers.flatten(), entries)
    return flat.reshape(*source.shape, *features)
