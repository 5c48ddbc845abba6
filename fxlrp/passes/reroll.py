"""Reroll: a loop over the steps of a sequence becomes one recurrence over the sequence.

A cell is a recurrence of one step, and a loop over it a chain of them. Were each an operation of its own, a program
would grow with the length of the sequence. A recurrent layer shares relevance out in the same way, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes.annotate import annotate
from fxlrp.passes.base import Pass, check
from fxlrp.passes.building import target_name
from fxlrp.passes.facts import KEY, Facts, facts
from fxlrp.passes.joins import dominators
from fxlrp.passes.loops import Step, is_taken_from_front, next_chain, results_of, step_before, steps_of
from fxlrp.passes.pieces import RANK, Move, Piece, Run, arguments_of, moves_to, piece_of, run_of, value_numbers
from fxlrp.passes.values import batch_positions
from fxlrp.steps.batch_axis import Position
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.batch import PickedItemError

aten = torch.ops.aten


class RerollLoops(Pass):
    """Makes one recurrence of steps of which each takes the states that the one before gave.

    What the steps see must not depend on them; a step that sees what a step before it said begins another recurrence.
    So does a step behind an LSTM's whose memory is used elsewhere, because a recurrence gives the last one alone.
    Outputs are read from the sequence, and where they are stacked in order they are the sequence.

    It works on the rules that were assigned, so that every node has the one that it has in the loop as it is written.

    Requires assigned rules; ensures that what carries signal has operands.

    Attributes:
        lost: names of nodes that are gone or receive less than in the loop as it is written, and of their modules.
        new: names of nodes that the loop as it is written does not have.
    """

    def __init__(self) -> None:
        self.lost: frozenset[str] = frozenset()
        self.new: frozenset[str] = frozenset()

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            ruled = facts(node).kind is not Kind.RECURRENT or facts(node).rule is not None
            check(ruled, f"{node} has no rule: assign first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        graph = module.graph
        steps = {step.call: step for step in steps_of(graph)}
        if not any(step_before(step, steps) for step in steps.values()):
            return module
        steps = {step.call: step for step in _with_items_apart(module, steps.values())}
        loops = _Loops(graph)
        while chain := next_chain(graph, steps):
            loops.reroll(chain)
            for step in chain:
                del steps[step.call]
        self.lost, self.new = loops.finish()
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            fed = node.op != "call_function" or facts(node).kind is Kind.INPUT or bool(facts(node).operands)
            check(not facts(node).signal or fed, f"{node} carries signal but has no operand")


def _with_items_apart(module: fx.GraphModule, steps: Iterable[Step]) -> Iterator[Step]:
    """Of some steps those that are known to have each item of the batch by itself in what they see."""
    positions = batch_positions(module)
    for step in steps:
        try:
            position = positions.of(step.input)
        except PickedItemError:  # told where relevance is written
            continue
        position = Position(0) if position is None else position
        in_place = isinstance(position, Position) and position == Position(1 - step.time)
        if in_place or positions.whole or not facts(step.input).signal:
            yield step


class _Loops:
    """The loops of one graph, while they are rerolled one after the other.

    Args:
        graph: the forward graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.written = {node: node.name for node in graph.nodes}
        self.changed: set[fx.Node] = set()
        self.passed_by: set[fx.Node] = set()  # what the steps read no more, and the states that they hand on themselves
        self.pieces: dict[fx.Node, Piece] = {}  # of the last states
        self.sequences: set[fx.Node] = set()

    def reroll(self, chain: list[Step]) -> None:
        """Let the first of some steps be the recurrence over all, and the others go."""
        first, last = chain[0], chain[-1]
        call, time = first.call, first.time
        sequence = self._sequence(chain)
        call.args = (sequence, *call.args[1:])
        outputs = self._new(call, "outputs", getitem, call, 0)
        facts(outputs).shape = tuple(len(chain) if axis == time else None for axis in range(RANK))
        self.sequences.add(outputs)
        self.changed.add(call)
        self.passed_by.update(step.call for step in chain)
        for t, step in enumerate(chain):
            for output in results_of(step.call, 0):
                if output is not outputs:
                    self._become(output, aten.narrow.default, outputs, time, t, 1)
            for state in results_of(step.call, 1):
                self.passed_by.update({state, *filter(is_taken_from_front, state.users)})
                if step is last:
                    self.pieces[state] = Piece(outputs, time, t, at=0)
                else:
                    self._read_state(state, outputs, time, t)
        for place in range(1, len(last.states) + 1):
            for state in results_of(last.call, place):
                self._become(state, getitem, call, place)
        _sort(self.graph)
        self._join_outputs()

    def _read_state(self, state: fx.Node, outputs: fx.Node, time: int, t: int) -> None:
        """Let a state after a step that is not the last be read from the outputs."""
        for user in list(state.users):
            if is_taken_from_front(user):
                self._become(user, aten.select.int, outputs, time, t)
        if state.users:  # with its axis for layers
            self._become(state, aten.unsqueeze.default, self._new(state, "step", aten.select.int, outputs, time, t), 0)

    def _sequence(self, chain: list[Step]) -> fx.Node:
        """What all steps see, one behind the other: of one value where they see its parts in order."""
        inputs, (call, _, _, time, _) = [step.input for step in chain], chain[0]
        numbers = value_numbers(self.graph)
        run = run_of([piece_of(node, self.pieces) for node in inputs], numbers)
        if run is not None:
            self._pass_by(inputs, run.source)
            return self._moved(call, run.source, moves_to(run, time))
        if len({numbers[node] for node in inputs}) == 1:
            sizes = [len(chain) if axis == time else -1 for axis in range(RANK)]
            return self._new(call, "input", aten.expand.default, inputs[0], sizes)
        if all(node.target is aten.unsqueeze.default for node in inputs):
            return self._new(call, "input", aten.stack.default, [arguments_of(node)["self"] for node in inputs], time)
        return self._new(call, "input", aten.cat.default, inputs, time)

    def _pass_by(self, nodes: Sequence[fx.Node], source: fx.Node) -> None:
        """Note that pieces are read no more, nor what makes them of the value that they are pieces of."""
        for node in nodes:
            piece = piece_of(node, self.pieces)
            assert piece is not None
            while node is not piece.source and node not in self.passed_by:
                self.passed_by.add(node)
                node = node.all_input_nodes[0]
            if piece.source is not source:
                self.passed_by.add(piece.source)  # computed once more for this piece alone

    def _moved(self, call: fx.Node, source: fx.Node, moves: list[Move]) -> fx.Node:
        for target, arguments in moves:
            source = self._new(call, target_name(target), target, source, *arguments)
        return source

    def _join_outputs(self) -> None:
        """Let outputs that are put together in order be the sequence, or what moves make of it."""
        numbers = value_numbers(self.graph)
        for node in list(self.graph.nodes):
            if node.target not in (aten.stack.default, aten.cat.default):
                continue
            entries = arguments_of(node)["tensors"]
            side_by_side = _side_by_side(entries) if node.target is aten.stack.default else None
            columns = side_by_side or [entries]
            runs = [self._run_of_outputs(node, column, numbers) for column in columns]
            if None in runs:
                continue
            found: list[tuple[Run, list[Move]]] = runs  # type: ignore[assignment]
            for column, (run, _) in zip(columns, found, strict=True):
                self._pass_by(column, run.source)
            if side_by_side is not None:
                self.passed_by.update(entries)
                parts = [self._moved(node, run.source, moves) for run, moves in found]
                self._become(node, aten.cat.default, parts, RANK - 1 if _dim(node) < RANK - 1 else RANK - 2)
            elif (moves := found[0][1]):
                target, arguments = moves[-1]
                self._become(node, target, self._moved(node, found[0][0].source, moves[:-1]), *arguments)
            else:
                self._become(node, getitem, *found[0][0].source.args)

    def _run_of_outputs(
        self, node: fx.Node, entries: Sequence[fx.Node], numbers: dict[fx.Node, int]
    ) -> tuple[Run, list[Move]] | None:
        """Which outputs of a recurrence in order those are that a node joins, and what moves them as it does."""
        pieces = [piece_of(entry, self.pieces) for entry in entries]
        joined = _joined(node, pieces[0])
        run = None if joined is None or len(pieces) < 2 else run_of(pieces, numbers)
        if run is None or joined is None or run.source not in self.sequences:
            return None
        at, behind = joined
        return run, [*moves_to(run, at), *behind]

    def _new(self, like: fx.Node, name: str, target: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_before(like):
            node = self.graph.create_node("call_function", target, args, {}, f"{like.name}_{name}")
        node.meta[KEY] = Facts(facts(like).origin)
        self.changed.add(node)
        return node

    def _become(self, node: fx.Node, target: Any, *args: Any) -> None:
        """Let a node compute its value in another way."""
        node.target, node.args, node.kwargs = target, args, {}
        self.changed.add(node)

    def finish(self) -> tuple[frozenset[str], frozenset[str]]:
        """Drop what is not needed any more, and find what is known of what is new; names as the pass has them."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        left = dict.fromkeys(self.graph.nodes)
        for node in left:
            if node in self.changed:
                annotate(node)
        _find_forks(self.graph)
        lost = {node for node in self.written if node not in left} | self.passed_by
        modules = {path for node in lost for path, _ in facts(node).origin.modules}
        new = frozenset(node.name for node in left if node not in self.written)
        return frozenset(self.written[node] for node in lost if node in self.written) | modules, new


def _side_by_side(entries: Sequence[fx.Node]) -> list[tuple[fx.Node, ...]] | None:
    """The values whose features are side by side in each entry: the first ones, the second ones, and so on."""
    if any(entry.target is not aten.cat.default or _dim(entry, RANK - 1) != 1 for entry in entries):
        return None
    parts = [arguments_of(entry)["tensors"] for entry in entries]
    return list(zip(*parts, strict=True)) if len({len(part) for part in parts}) == 1 else None


def _joined(node: fx.Node, piece: Piece | None) -> tuple[int, list[Move]] | None:
    """Where ``stack`` or ``cat`` has the axis along which it joins pieces like one, and what moves them then."""
    if piece is None:
        return None
    if node.target is aten.stack.default:
        return (_dim(node), []) if piece.at is None else None
    if piece.at is not None:
        return (piece.at, []) if piece.at == _dim(node) else None
    side_by_side: list[Move] = [(aten.flatten.using_ints, (1, 2))]
    return (1, side_by_side) if _dim(node, RANK - 1) == 1 else None


def _dim(node: fx.Node, rank: int = RANK) -> int:
    """Along which axis ``stack`` or ``cat`` joins."""
    return int(arguments_of(node)["dim"] % rank)


def _find_forks(graph: fx.Graph) -> None:
    """Name the forks of joins among the nodes that are left; what joins are stays as it was in the loop."""
    signal = [node for node in graph.nodes if node.op != "output" and facts(node).signal]
    joins = [node for node in signal if facts(node).kind is Kind.JOIN]
    if joins:
        forks = dominators(signal)
        for node in joins:
            fork = forks[node]
            facts(node).join = replace(facts(node).join, fork=None if fork is None else fork.name)


def _sort(graph: fx.Graph) -> None:
    """Put every node behind what it needs, and else leave them in their order."""
    nodes = list(graph.nodes)
    ordered: dict[fx.Node, None] = {}
    for node in nodes:
        waiting = [node]  # no recursion: loops may have a thousand steps
        while waiting:
            missing = [source for source in waiting[-1].all_input_nodes if source not in ordered]
            if missing:
                waiting += missing
            else:
                ordered.setdefault(waiting.pop())
    first, *others = ordered
    for node in others:
        first.append(node)
        first = node
