"""Reroll: a loop over the steps of a sequence becomes one recurrence over the sequence.

A cell is a recurrence of one step, and a loop over it a chain of them. Were each an operation of its own, a program
would grow with the length of the sequence. A recurrent layer shares relevance out in the same way, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import fx

from fxlrp.passes.annotate import annotate
from fxlrp.passes.base import Pass, check
from fxlrp.passes.building import target_name
from fxlrp.passes.facts import KEY, Facts, facts
from fxlrp.passes.joins import dominators
from fxlrp.passes.pieces import RANK, Move, Piece, moves_to, piece_of, run_of, value_numbers
from fxlrp.passes.values import batch_positions
from fxlrp.steps.batch_axis import Position
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.batch import PickedItemError
from fxlrp.vocabulary.recurrent import LAYERS

aten = torch.ops.aten
_RECURRENCES = {layer.target for layer in LAYERS.values()}


class Step(NamedTuple):
    """A recurrence of one step.

    Attributes:
        call: its node.
        input: what it sees, an axis of one step in it.
        states: the states before it.
        time: which axis of the input that of the step is.
        form: what all steps of a loop have in common: the cell, its parameters, its rule.
    """

    call: fx.Node
    input: fx.Node
    states: tuple[fx.Node, ...]
    time: int
    form: Any


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
        steps = {step.call: step for step in _steps(graph)}
        if not any(_before(step, steps) for step in steps.values()):
            return module
        apart = _with_items_apart(module, steps)
        steps = {call: step for call, step in steps.items() if call in apart}
        loops = _Loops(graph, steps)
        while chain := loops.next_chain():
            loops.reroll(chain)
        self.lost, self.new = loops.finish()
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            fed = node.op != "call_function" or facts(node).kind is Kind.INPUT or bool(facts(node).operands)
            check(not facts(node).signal or fed, f"{node} carries signal but has no operand")


def _steps(graph: fx.Graph) -> Iterator[Step]:
    """The recurrences over one step, in one layer and one direction."""
    for node in graph.nodes:
        if node.target not in _RECURRENCES or not facts(node).signal:
            continue
        input, hx, params, biases, layers, _, _, both, batch_first = node.args
        time = 1 if batch_first else 0
        if layers != 1 or both or _place_of_step(input) != time:
            continue
        form = node.target, params, biases, time, facts(node).rule, facts(input).signal, facts(node).origin.path
        yield Step(node, input, tuple(hx) if isinstance(hx, list | tuple) else (hx,), time, form)


def _place_of_step(input: fx.Node) -> Any:
    """Which axis of what a step sees is one long; ``None``: none is known to be."""
    if input.target is aten.unsqueeze.default:
        return input.args[1]
    piece = piece_of(input, {})
    return None if piece is None else piece.at


def _before(step: Step, steps: dict[fx.Node, Step]) -> Step | None:
    """The step that gave a step its states, all of them and in order."""
    given = [_result(state) for state in step.states]
    call = given[0][0] if given[0] is not None else None
    if call not in steps or given != [(call, place) for place in range(1, len(given) + 1)]:
        return None
    return steps[call] if steps[call].form == step.form else None


def _result(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Of which recurrence a state is which result."""
    if _is_put_in_front(node) and _is_taken_from_front(node.args[0]):
        node = node.args[0].args[0]  # type: ignore[union-attr, assignment]
    return node.args if node.target is getitem else None  # type: ignore[return-value]


def _is_put_in_front(node: fx.Node) -> bool:
    """Whether a state gets an axis for its one layer."""
    return node.target is aten.unsqueeze.default and node.args[1:] == (0,)


def _is_taken_from_front(node: Any) -> bool:
    """Whether a state loses this axis."""
    return node.target is aten.select.int and node.args[1:] == (0, 0)


def _results(call: fx.Node, place: int) -> list[fx.Node]:
    return [user for user in call.users if user.target is getitem and user.args[1] == place]


def _leads_only_to(call: fx.Node, node: fx.Node) -> bool:
    """Whether a state is read by one step alone."""
    moved = [user for user in node.users if user is not call]
    return all((_is_put_in_front(user) or _is_taken_from_front(user)) and _leads_only_to(call, user) for user in moved)


def _with_items_apart(module: fx.GraphModule, steps: dict[fx.Node, Step]) -> set[fx.Node]:
    """Of some steps those that are known to have each item of the batch by itself in what they see."""
    positions = batch_positions(module)
    apart = set()
    for call, step in steps.items():
        try:
            position = positions.of(step.input)
        except PickedItemError:  # told where relevance is written
            continue
        position = Position(0) if position is None else position
        in_place = isinstance(position, Position) and position == Position(1 - step.time)
        if in_place or positions.whole or not facts(step.input).signal:
            apart.add(call)
    return apart


class _Loops:
    """The loops of one graph, while they are rerolled one after the other.

    Args:
        graph: the forward graph.
        steps: the recurrences of one step that may be parts of a loop.
    """

    def __init__(self, graph: fx.Graph, steps: dict[fx.Node, Step]) -> None:
        self.graph, self.steps = graph, steps
        self.written = {node: node.name for node in graph.nodes}
        self.changed: set[fx.Node] = set()
        self.passed_by: set[fx.Node] = set()  # what the steps read no more, and the states that they hand on themselves
        self.pieces: dict[fx.Node, Piece] = {}  # of the last states
        self.sequences: set[fx.Node] = set()

    def next_chain(self) -> list[Step]:
        """Two or more steps that can be one recurrence; none: there are no more."""
        following: dict[fx.Node, Step] = {}
        behind = set()
        for step in self.steps.values():
            before = _before(step, self.steps)
            if before is None or before.call in following:
                continue
            memory = [result for place in range(2, len(step.states) + 1) for result in _results(before.call, place)]
            if all(_leads_only_to(step.call, result) for result in memory):
                following[before.call] = step
                behind.add(step.call)
        for step in self.steps.values():
            if step.call not in behind and step.call in following:
                chain = [step]
                while chain[-1].call in following:
                    chain.append(following[chain[-1].call])
                for part in self._independent(chain):
                    if len(part) > 1:
                        return part
        return []

    def _independent(self, chain: list[Step]) -> list[list[Step]]:
        """The chain in parts, in none of which a step sees what depends on a step before it."""
        of_chain = {step.call: step for step in chain}
        parts: list[list[Step]] = [[]]
        depends: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node in of_chain:
                if of_chain[node].input in depends:
                    parts.append([])
                    depends = set()
                parts[-1].append(of_chain[node])
                depends.add(node)
            elif any(source in depends for source in node.all_input_nodes):
                depends.add(node)
        return parts

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
            for output in _results(step.call, 0):
                if output is not outputs:
                    self._become(output, aten.narrow.default, outputs, time, t, 1)
            for state in _results(step.call, 1):
                self.passed_by.update({state, *filter(_is_taken_from_front, state.users)})
                if step is last:
                    self.pieces[state] = Piece(outputs, time, t, at=0)
                else:
                    self._read_state(state, outputs, time, t)
            del self.steps[step.call]
        for place in range(1, len(last.states) + 1):
            for state in _results(last.call, place):
                self._become(state, getitem, call, place)
        _sort(self.graph)
        self._join_outputs()

    def _read_state(self, state: fx.Node, outputs: fx.Node, time: int, t: int) -> None:
        """Let a state after a step that is not the last be read from the outputs."""
        for user in list(state.users):
            if _is_taken_from_front(user):
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
            return self._new(call, "input", aten.stack.default, [node.args[0] for node in inputs], time)
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
            entries: Any = node.args[0]
            pieces = [piece_of(entry, self.pieces) for entry in entries]
            joined = _joined(node, pieces[0])
            run = None if joined is None or len(pieces) < 2 else run_of(pieces, numbers)
            if run is None or joined is None or run.source not in self.sequences:
                continue
            self._pass_by(entries, run.source)
            at, behind = joined
            moves = [*moves_to(run, at), *behind]
            if moves:
                target, arguments = moves[-1]
                self._become(node, target, self._moved(node, run.source, moves[:-1]), *arguments)
            else:
                self._become(node, getitem, *run.source.args)

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


def _joined(node: fx.Node, piece: Piece | None) -> tuple[int, list[Move]] | None:
    """Where ``stack`` or ``cat`` has the axis along which it joins pieces like one, and what moves them then."""
    if piece is None:
        return None
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    if node.target is aten.stack.default:
        return (dim % RANK, []) if piece.at is None else None
    if piece.at is not None:
        return (piece.at, []) if piece.at == dim % RANK else None
    side_by_side: list[Move] = [(aten.flatten.using_ints, (1, 2))]
    return (1, side_by_side) if dim % (RANK - 1) == 1 else None


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
