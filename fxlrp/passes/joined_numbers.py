"""Lookups of joined numbers: what is joined is looked up part by part.

Numbers of tokens are often put together before they are looked up: a token of the model's own in front, those of users
beside those of items, others where a mask says so. A lookup of what is joined is the join of lookups, in which each
part has one input, or none, that its numbers come from. So graphs are rewritten in this form before anything else.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import Captured
from fxlrp.passes.aliases import overwrites
from fxlrp.passes.lookups import CASTS, SHIFTS, comes_from_input, index_of, name_of, table_index, trail

aten = torch.ops.aten

PART = "part_of"
"""In the meta of a captured node: the lookup in the model that it is a part of."""

_EMBEDDINGS = (torch.nn.functional.embedding, aten.embedding.default)


class _ComputedError(Exception):
    """A part is neither joined nor of one input: what is looked up is computed."""


def parted(captured: Captured) -> Captured:
    """The same, with lookups in front of the joins of their numbers."""
    if not any(_is_joined(node) for node in captured.graph.nodes):
        return captured
    graph = copy.deepcopy(captured.graph)  # it is shared by all that explain the model
    for node in list(graph.nodes):
        if _is_joined(node):
            with graph.inserting_before(node):
                try:
                    joined = _Lookup(graph, node).of(index_of(node), [])
                except _ComputedError:
                    continue
            node.replace_all_uses_with(joined)
            graph.erase_node(node)
    return replace(captured, graph=graph)


def _is_joined(node: fx.Node) -> bool:
    """Whether a node looks up numbers that come from inputs, and from none alone."""
    if node.target not in _EMBEDDINGS:
        table = table_index(node)
        if table is None or table.axis or table.behind:
            return False
    index = index_of(node)
    return isinstance(index, fx.Node) and not list(trail(index)) and comes_from_input(index)


class _Lookup:
    """A lookup in a model, done part by part.

    Args:
        graph: where to write.
        node: the lookup.
    """

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.node, self.index = graph, node, index_of(node)
        self.joins: dict[str, Callable[[fx.Node, list[fx.Node]], fx.Node]] = {
            "cat": self._cat, "concat": self._cat, "concatenate": self._cat, "stack": self._cat, "where": self._where,
            "slice_scatter": self._written, "select_scatter": self._written, "copy": self._copied,
            "index_put": self._put, "masked_fill": self._filled,
        }  # fmt: skip

    def of(self, index: Any, casts: list[fx.Node]) -> fx.Node:
        """What is looked up by an index, its parts by themselves.

        Args:
            index: the index.
            casts: what is done with every number before it is looked up, the last first.

        Raises:
            _ComputedError: it is not to be had.
        """
        if not isinstance(index, fx.Node):
            raise _ComputedError
        if list(trail(index)) or not comes_from_input(index):
            return self._looked_up(index, casts)
        name = name_of(index)
        if name in CASTS or (name in SHIFTS and _by_numbers(index)):
            return self.of(index.args[0], [*casts, index])
        if _picks_in_front(index):
            return self._again(index, self.of(index.args[0], casts), *index.args[1:])
        if name not in self.joins or overwrites(index):
            raise _ComputedError
        return self.joins[name](index, casts)

    def _looked_up(self, index: fx.Node, casts: list[fx.Node]) -> fx.Node:
        """The lookup of one part, cast as the whole is."""
        for cast in reversed(casts):
            index = self._again(cast, index, *cast.args[1:])
        args, kwargs = fx.node.map_arg(
            (self.node.args, self.node.kwargs), lambda node: index if node is self.index else node
        )
        part = self._new(self.node, self.node.target, args, kwargs)
        part.meta[PART] = self.node.name
        whole, own = self.node.meta.get("val"), index.meta.get("val")
        if isinstance(whole, Tensor) and isinstance(own, Tensor):
            features = whole.shape[self.index.meta["val"].dim() :]
            part.meta["val"] = whole.new_empty((*own.shape, *features))
        return part

    def _cat(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        parts, *more = node.args
        dim = more[0] if more else node.kwargs.get("dim", 0)
        if not isinstance(parts, Sequence) or len(more) > 1 or node.kwargs.keys() - {"dim"}:
            raise _ComputedError
        joined = [self.of(part, casts) for part in parts]
        return self._valued(self._new(node, node.target, (joined, _in_front(dim)), {}))

    def _where(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        if len(node.args) != 3:
            raise _ComputedError
        order = (1, 0, 2) if node.op == "call_method" else (0, 1, 2)
        condition, *values = (node.args[place] for place in order)
        nodes = [value for value in values if isinstance(value, fx.Node)]
        if not isinstance(condition, fx.Node) or not nodes:
            raise _ComputedError
        chosen = [self._of_value(value, nodes[0], casts) for value in values]
        args = [self._behind(condition), *chosen]
        target = aten.where.self if isinstance(node.target, torch._ops.OpOverload) else node.target  # of no number now
        return self._valued(self._new(node, target, [args[place] for place in order], {}, node.op))

    def _written(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        base, source, *where = node.args
        where = [_in_front(where[0]), *where[1:]] if where else where
        return self._again(node, self.of(base, casts), self.of(source, casts), *where)

    def _copied(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        base, source = node.args[:2]
        return self._again(node, self.of(base, casts), self.of(source, casts))

    def _put(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        base, indices, source, *accumulate = node.args
        if any(accumulate):
            raise _ComputedError
        return self._again(node, self.of(base, casts), indices, self.of(source, casts))

    def _filled(self, node: fx.Node, casts: list[fx.Node]) -> fx.Node:
        base, mask, value = node.args
        if not isinstance(base, fx.Node) or not isinstance(mask, fx.Node):
            raise _ComputedError
        filling = self._of_value(value, base, casts)
        return self._call(node, aten.where.self, self._behind(mask), filling, self.of(base, casts))

    def _of_value(self, value: Any, beside: fx.Node, casts: list[fx.Node]) -> fx.Node:
        """What is looked up by numbers, or by one."""
        number = value if isinstance(value, fx.Node) else self._call(beside, aten.new_full.default, beside, [], value)
        return self.of(number, casts)

    def _behind(self, mask: fx.Node) -> fx.Node:
        """A mask of numbers as one of what they look up."""
        return self._call(mask, aten.unsqueeze.default, mask, -1)

    def _again(self, node: fx.Node, *args: Any) -> fx.Node:
        """What a node does, to other values."""
        return self._valued(self._new(node, node.target, args, node.kwargs, node.op))

    def _call(self, like: fx.Node, target: Any, *args: Any) -> fx.Node:
        return self._valued(self._new(like, target, args, {}))

    def _new(self, like: fx.Node, target: Any, args: Any, kwargs: Any, op: str = "call_function") -> fx.Node:
        node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        node.meta = {name: value for name, value in like.meta.items() if name != "val"}
        return node

    def _valued(self, node: fx.Node) -> fx.Node:
        """The node, with what an export knows of its value."""
        if self.node.meta.get("val") is not None and node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
        return node


def _value(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if value is None:
        raise _ComputedError
    return value


def _by_numbers(node: fx.Node) -> bool:
    """Whether arithmetic is that of a value with plain numbers."""
    return all(isinstance(other, int | float) for other in (*node.args[1:], *node.kwargs.values()))


def _picks_in_front(node: fx.Node) -> bool:
    """Whether a node picks numbers by axes that are counted from the first, and so does of what they look up."""
    if node.kwargs:
        return False
    if node.target in (aten.slice.Tensor, aten.select.int):
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        return isinstance(dim, int) and dim >= 0
    if node.target is operator.getitem:
        index = node.args[1]
        entries = index if isinstance(index, tuple) else (index,)
        return all(isinstance(entry, slice | int) for entry in entries)
    return False


def _in_front(dim: Any) -> int:
    """An axis of numbers, where features lie behind them."""
    if not isinstance(dim, int):
        raise _ComputedError
    return dim if dim >= 0 else dim - 1
