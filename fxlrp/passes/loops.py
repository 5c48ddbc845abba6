"""Loops: recurrences of one step, and which of them are steps of one recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.passes.pieces import RANK, arguments_of, piece_of
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


Steps = Mapping[fx.Node, Step]
"""Steps by their nodes."""


def next_chain(graph: fx.Graph, steps: Steps) -> list[Step]:
    """Two or more of some steps that can be one recurrence; none: there are no more.

    Each takes the states that the one before gave, and none sees what depends on a step before it.
    """
    following: dict[fx.Node, Step] = {}
    behind = set()
    for step in steps.values():
        before = step_before(step, steps)
        if before is None or before.call in following:
            continue
        memory = [result for place in range(2, len(step.states) + 1) for result in results_of(before.call, place)]
        if all(_leads_only_to(step.call, result) for result in memory):
            following[before.call] = step
            behind.add(step.call)
    for step in steps.values():
        if step.call not in behind and step.call in following:
            chain = [step]
            while chain[-1].call in following:
                chain.append(following[chain[-1].call])
            for part in _independent(graph, chain):
                if len(part) > 1:
                    return part
    return []


def _independent(graph: fx.Graph, chain: list[Step]) -> list[list[Step]]:
    """The chain in parts, in none of which a step sees what depends on a step before it."""
    of_chain = {step.call: step for step in chain}
    parts: list[list[Step]] = [[]]
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        if node in of_chain:
            if of_chain[node].input in depends:
                parts.append([])
                depends = set()
            parts[-1].append(of_chain[node])
            depends.add(node)
        elif any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    return parts


def steps_of(graph: fx.Graph) -> Iterator[Step]:
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
        return arguments_of(input)["dim"] % RANK
    piece = piece_of(input, {})
    return None if piece is None else piece.at


def step_before(step: Step, steps: Steps) -> Step | None:
    """The step that gave a step its states, all of them and in order."""
    given = [_result(state) for state in step.states]
    call = given[0][0] if given[0] is not None else None
    if call is None or call not in steps or given != [(call, place) for place in range(1, len(given) + 1)]:
        return None
    return steps[call] if steps[call].form == step.form else None


def _result(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Of which recurrence a state is which result."""
    if _is_put_in_front(node) and is_taken_from_front(node.args[0]):
        node = node.args[0].args[0]  # type: ignore[union-attr, assignment]
    return node.args if node.target is getitem else None  # type: ignore[return-value]


def _is_put_in_front(node: fx.Node) -> bool:
    """Whether a state gets an axis for its one layer."""
    return node.target is aten.unsqueeze.default and node.args[1:] == (0,)


def is_taken_from_front(node: Any) -> bool:
    """Whether a state loses this axis."""
    return node.target is aten.select.int and node.args[1:] == (0, 0)


def results_of(call: fx.Node, place: int) -> list[fx.Node]:
    """The nodes that read one result of a recurrence: its outputs, or its states after them."""
    return [user for user in call.users if user.target is getitem and user.args[1] == place]


def _leads_only_to(call: fx.Node, node: fx.Node) -> bool:
    """Whether a state is read by one step alone."""
    moved = [user for user in node.users if user is not call]
    return all((_is_put_in_front(user) or is_taken_from_front(user)) and _leads_only_to(call, user) for user in moved)
