"""Emit: the relevance graph, in reverse, into a copy of the forward graph.

A value's relevance is the sum of what each of its readers hands it. A reader's rule is
called on proxies, which writes its steps into the graph. What else a call wants, watchers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx, nn

from fxlrp.common.tensors import START
from fxlrp.passes import lookups
from fxlrp.passes.conditions import write_parts
from fxlrp.passes.facts import facts, rule_label
from fxlrp.passes.optimize import REUSE_FORWARD, SINGLE_BRANCH
from fxlrp.passes.propagate import propagate
from fxlrp.passes.relevance_flows import Flows
from fxlrp.passes.request import Program, Request, Results
from fxlrp.passes.values import Values
from fxlrp.passes.watchers import CheckpointWatcher, ConditionWatcher, LedgerWatcher, NodeWatcher, Watcher
from fxlrp.passes.writer import Writer
from fxlrp.rules.rule import added
from fxlrp.rules.starts import NONNEGATIVE, SeveralStarts, Start, contrast, resolve_target
from fxlrp.steps.batch_axis import Position, row_sums, select_target, total
from fxlrp.vocabulary import Kind


def emit(forward: fx.GraphModule, output: fx.Node, start: Start | nn.Module, request: Request) -> Program:
    """Write the relevance of ``output`` back to the inputs.

    Args:
        forward: the forward graph, rules assigned.
        output: the node where relevance starts.
        start: ``(output, target) -> relevance``; a module is called as one. Where the call names rivals,
            :func:`~fxlrp.rules.starts.contrast` says what takes its place.
        request: what is wanted.

    Raises:
        PatternError: a checkpoint or a condition is no module that the graph passes through, or no relevance
            reaches a node that is wanted.
        RuleError: a rule does with relevance what conditions do not understand.
    """
    writer = Writer(forward)
    mixed, narrow = request.precision != "uniform", request.precision == "products"
    optimizations = request.optimizations or ()
    values = Values(
        writer.graph, writer.copies, writer.builder, output, mixed=mixed,
        signs=SINGLE_BRANCH in optimizations,
        # An output of half precision is rounded more than a denominator may be, unless products are as well.
        outputs=REUSE_FORWARD in optimizations and (narrow or not mixed), narrow=narrow,
    )  # fmt: skip
    ledger = LedgerWatcher(values) if request.ledger else None
    conditions = ConditionWatcher(writer, values, request.conditions, output, ledger)
    watchers: list[Watcher] = [conditions, CheckpointWatcher(forward.graph, request.checkpoints)]
    watchers += [NodeWatcher(request.nodes), *([] if ledger is None else [ledger])]

    target, number = writer.argument("target"), writer.argument("number") if request.targets == "several" else None
    rivals = [writer.argument("against")] if request.against else []
    begins: Callable[..., Any] = contrast(start) if request.against else start
    values.follow_batch(writer)
    writer.scope(output, "start", role="start")
    axis = _output_axis(values, output)
    beginning, explained = _beginning(writer, values.value(output), begins, target, number, rivals, axis)
    flows = Flows(writer)
    flows.begin(output, beginning, negative=begins not in NONNEGATIVE)
    _sweep(writer, values, flows, watchers)

    writer.scope(output, "start", role="result")
    results = Results(
        relevance=[_arrived(node, values, flows) for node in writer.inputs],
        output=list(writer.outputs[1:]),
        target=explained,
        start=_entered(beginning, values, output),
        **{name: value for watcher in watchers for name, value in watcher.results(flows).items()},
    )
    writer.returns(results.present())
    if request.conditions:
        write_parts(writer.graph, beginning.node)
    return Program(writer.assemble(), forward, [] if ledger is None else ledger.heads, conditions.points, axis)


def _sweep(writer: Writer, values: Values, flows: Flows, watchers: Sequence[Watcher]) -> None:
    """Share the relevance of every node out over its operands, from the output back to the inputs."""
    for node in reversed(writer.forward.graph.nodes):
        if node not in flows.received:
            continue
        for watcher in watchers:
            watcher.before(node, flows)
        node_facts = facts(node)
        if node_facts.kind is Kind.INPUT:
            continue
        writer.scope(node, rule_label(node_facts))
        if node in flows.negative or not (node_facts.rule is None or node_facts.rule.keeps_sign):
            flows.negative.update(operand for _, operand in node_facts.operands)
        if node.target is getitem:
            flows.hand_entry(node)
            continue
        received = flows.received[node]
        shares = propagate(values, node, received, signed=node in flows.negative)
        for (_, operand), share in zip(node_facts.operands, shares.operands, strict=True):
            if share is not None:
                flows.hand(operand, node, share)
        for watcher in watchers:
            watcher.shared(node, received, shares)


def _beginning(
    writer: Writer, output: Any, start: Callable[..., Any], target: Any, number: Any | None, rivals: Sequence[Any],
    axis: int | None,
) -> tuple[Any, Any]:  # fmt: skip
    """The relevance that enters, and the class that it explains."""
    if axis:  # a start is of (batch, ...)
        entered, explained = _beginning(writer, output.movedim(axis, 0), start, target, number, rivals, 0)
        return entered.movedim(0, axis), explained
    if number is not None:
        starts = writer.call_module(START, SeveralStarts(start), output, target, *rivals)
        return select_target(starts, number), select_target(target, number)
    explained = resolve_target(output, target)
    if isinstance(start, nn.Module):
        return writer.call_module(START, start, output, explained), explained
    return start(output, explained, *rivals), explained


def _output_axis(values: Values, output: fx.Node) -> int | None:
    """The axis of the batch in the output; ``None``: its rows are no items."""
    if values.positions.whole:
        return None
    position = values.positions.of(output)
    return position.axis if isinstance(position, Position) and position.outer == 1 else 0


def _entered(beginning: Any, values: Values, output: fx.Node) -> Any:
    """The relevance that entered: (batch,); where all is one item, one sum for each row of the output."""
    return row_sums(beginning) if values.positions.whole else total(beginning, *values.where(output))


def _arrived(node: fx.Node, values: Values, flows: Flows) -> Any:
    """The relevance of an input; for an input of integers that of their lookups, features side by side."""
    forward = [other for other in node.graph.nodes if other.op != "output"]
    looked_up = [n for n in forward if facts(n).source is node and n in flows.received]
    source = values.value(node)
    parts: dict[str, list[Any]] = {}  # of one lookup in the model relevance is one
    for n in looked_up:
        part = lookups.place(n, flows.received[n], source, values.again)
        parts.setdefault(facts(n).part_of or n.name, []).append(part)
    placed = [added(of_one) for of_one in parts.values()]
    if not facts(node).integer:
        # An input that only opens a gate, or is not used at all, receives nothing.
        received = flows.received.get(node, torch.zeros_like(source))
        return added([received, *(lookups.without_features(part, source) for part in placed)])
    if not placed:
        return torch.zeros_like(source, dtype=torch.float32)
    return placed[0] if len(placed) == 1 else torch.cat(placed, dim=-1)
