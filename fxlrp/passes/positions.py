"""Where the batch is in each value of the graph that is being emitted.

Nearly always in front, and then nothing is emitted about it. Where values are moved so that
it is not (or may not be), positions follow the moves: at once where the graph says enough,
else in steps that read shapes when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes import lookups
from fxlrp.passes.facts import facts, operation_of
from fxlrp.passes.ranks import Ranks, is_broadcast
from fxlrp.steps.batch_axis import BatchAxis, Position, behind_places, expanded, indexed, joined, owners_in, padded
from fxlrp.vocabulary import Arguments, Kind
from fxlrp.vocabulary.batch import (
    PickedItemError,
    batch_interleaved,
    batch_of_piece,
    batch_parted,
    batch_reshaped,
    batch_summed,
    batch_unbound,
    in_front,
)

FRONT = Position(0)
ONE_ITEM = BatchAxis(0, 1, 1)
"""Of a value all of which is one item."""
_PARTING = (batch_parted, batch_unbound)

class Positions:
    """Follows the batch through the forward graph.

    Args:
        value: the emitted value of a forward node.
        arguments: its arguments, as emitted values.

    Attributes:
        batch: the number of items, an emitted value.
        whole: whether there is no batch: all inputs together are one item.
        fixed: whether the graph is of one size of the batch alone.
    """

    def __init__(self, value: Callable[[fx.Node], Any], arguments: Callable[[fx.Node], Arguments]) -> None:
        self.value = value
        self.arguments = arguments
        self.batch: Any = None
        self.whole = self.fixed = False
        self._found: dict[fx.Node, Any] = {}
        self._ranks = Ranks()

    def batch_axis(self, node: fx.Node) -> BatchAxis | None:
        """What sums over the items of ``node`` need; ``None`` where its first axis is the batch."""
        if self.whole:
            return ONE_ITEM
        return self._axis(self.of(node))

    def _of_states(self, node: fx.Node) -> Any:
        """They are (layers · directions, batch, features), wherever the batch is in the sequence."""
        position = self.of(node)
        return Position(1) if position is None else behind_places(position)

    def _axis(self, position: Any) -> BatchAxis | None:
        if position is None:
            return None
        owners = () if isinstance(position, Position) else (owners_in(position),)
        return BatchAxis(position[0], position[1], self.batch, *owners)

    def of(self, node: fx.Node) -> Any:
        """The position of the batch in ``node``; ``None``: the first axis is the batch, or there is no batch."""
        if self.whole:
            return None
        waiting = [node]  # no recursion: models may be a thousand layers deep
        while waiting[-1] not in self._found and facts(waiting[-1]).operands:
            waiting.append(facts(waiting[-1]).operands[0][1])
        for value in reversed(waiting):
            if value not in self._found:
                self._found[value] = self._moved(value)
        return self._found[node]

    def _moved(self, node: fx.Node) -> Any:
        node_facts = facts(node)
        if node_facts.kind is Kind.INPUT:
            if node_facts.source is not None:
                return self._of_lookup(node)
            return Position(node_facts.batch) if node_facts.batch else None
        if not node_facts.operands:
            return None
        source = node_facts.operands[0][1]
        before = self.of(source)
        if node.target is getitem and facts(source).kind is Kind.RECURRENT and node.args[1] != 0:
            return self._of_states(source)
        if is_broadcast(node):
            front = before is None or in_front(before)
            # An operand of fewer axes is broadcast: the other one says where the batch is.
            others = [self.of(operand) for _, operand in node_facts.operands[1:]] if front else []
            moved = [other for other in others if not (other is None or in_front(other))]
            if moved:
                return moved[0]
            if self._ranks.may_widen(node) or (not front and self._ranks.may_be_longer(node)):
                return expanded(FRONT if before is None else before, self.value(source).dim(), self.value(node).dim())
            if len(node_facts.operands) > 1 and front:
                return before
        if node.target is getitem and facts(source).operands and operation_of(facts(source)).batch in _PARTING:
            return self._of_piece(node, source)
        if node_facts.operation is not None and node_facts.operation.name in ("cat", "stack"):
            positions = [self.of(operand) for _, operand in node_facts.operands]
            if any(isinstance(position, fx.Proxy) for position in positions) or _joins_items(node, positions):
                return self._joined(node, positions)
        if node.target is getitem or node_facts.operation is None:
            return before
        if node_facts.operation.name == "constant_pad_nd" and self._asks_batch(node.args[1]):
            shape = self.arguments(node)["self"].shape
            return padded(FRONT if before is None else before, self.arguments(node)["pad"], shape, self.batch)
        if node_facts.operation.batch is None:
            return before
        move = node_facts.operation.batch
        if move is batch_reshaped and (before is None or in_front(before)) and self._keeps_batch(node):
            return None
        arguments = self.arguments(node)
        arguments["output"] = self.value(node)
        arguments["batch"], arguments["operand"] = self.batch, node_facts.operands[0][0]
        arguments["fixed"], arguments["widens"] = self.fixed, self._ranks.may_widen(node)
        arguments["least"] = self._ranks.of(source).least
        try:
            after = move(FRONT if before is None else before, arguments)
        except PickedItemError as error:
            error.of_input = source.op == "placeholder"
            raise
        merges = move in (batch_reshaped, batch_summed, batch_interleaved)
        return None if before is None and in_front(after) and not merges else after

    def _of_lookup(self, node: fx.Node) -> Any:
        """In what is looked up for an input, of which some items may have been picked before."""
        picked, position = lookups.picked(node), lookups.position(node)
        if picked is None or position is not None or facts(node).fixed:
            return position
        numbers, index = picked
        return indexed(FRONT, [self.value(index)], self.value(numbers).shape, self.batch)

    def _of_piece(self, node: fx.Node, source: fx.Node) -> Any:
        """In one of the pieces into which ``source`` takes a value apart."""
        before, together = self.of(facts(source).operands[0][1]), self.of(source)
        arguments = self.arguments(source) | {
            "output": self.value(source), "batch": self.batch, "fixed": self.fixed, "together": together,
            "unbinds": operation_of(facts(source)).name == "unbind",
        }  # fmt: skip
        index: Any = node.args[1]
        return batch_of_piece(FRONT if before is None else before, arguments, index, self.value(node))

    def _joined(self, node: fx.Node, positions: list[Any]) -> Any:
        """After ``cat`` or ``stack`` of values that may be of one item each."""
        operation = operation_of(facts(node))
        arguments = operation.arguments(node.args, node.kwargs)
        signals = [operand for _, operand in facts(node).operands]
        constants = len(signals) < len(arguments["tensors"])
        proxies = any(isinstance(position, fx.Proxy) for position in positions)
        if constants and not proxies and not _joins_items(node, positions):
            return positions[0]  # beside constants, which belong to nobody
        places = dict(zip(signals, (FRONT if place is None else place for place in positions), strict=True))
        known = [places.get(part) for part in arguments["tensors"]]
        parts = self.arguments(node)["tensors"]
        return joined(known, parts, arguments["dim"], self.batch, stacks=operation.name == "stack")

    def _asks_batch(self, numbers: Any) -> bool:
        """Whether any of some numbers in the graph is made of the length of the batch."""
        waiting = [number for number in numbers if isinstance(number, fx.Node)]
        while waiting:
            number = waiting.pop()
            if self._is_batch(number):
                return True
            if not facts(number).signal:
                waiting.extend(number.all_input_nodes)
        return False

    def _keeps_batch(self, node: fx.Node) -> bool:
        """Whether a reshape of a value with the batch in front is known to leave it there."""
        name = facts(node).operation.name  # type: ignore[union-attr]
        arguments = facts(node).operation.arguments(node.args, node.kwargs)  # type: ignore[union-attr]
        if name == "flatten":
            whole = self.of(facts(node).operands[0][1]) is None
            return whole and arguments["start_dim"] > 0
        if name == "unflatten":
            return self.of(facts(node).operands[0][1]) is None and arguments["dim"] != 0
        shape = arguments.get("shape", arguments.get("size"))
        if not isinstance(shape, list | tuple) or not shape:
            return False
        return self._is_batch(shape[0])

    def _is_batch(self, size: Any) -> bool:
        """Whether a number in the graph is the length of an axis that is the batch."""
        if not isinstance(size, fx.Node):
            return False
        source: Any = None
        asks_size = size.target in ("size", torch.ops.aten.sym_size.int)
        if asks_size and size.args[1:] == (0,):
            source = size.args[0]
        elif size.target is getitem and size.args[1] == 0:
            shape: Any = size.args[0]
            asks = isinstance(shape, fx.Node) and (
                (shape.target is getattr and shape.args[1] == "shape")
                or (shape.target == "size" and len(shape.args) == 1)
            )
            source = shape.args[0] if asks else None
        if not isinstance(source, fx.Node):
            return False
        node_facts = facts(source)
        return node_facts.batch == 0 and (source.op == "placeholder" or (node_facts.signal and self.of(source) is None))


def _joins_items(node: fx.Node, positions: list[Any]) -> bool:
    """Whether ``cat`` puts more items behind those of a value."""
    operation = operation_of(facts(node))
    dim = operation.arguments(node.args, node.kwargs)["dim"]
    return operation.name == "cat" and dim in {(position or FRONT)[0] for position in positions}
