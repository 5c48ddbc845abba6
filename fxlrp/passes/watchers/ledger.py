"""The ledger: what each node received, handed on and absorbed."""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.passes.relevance_flows import Flows, Relevance
from fxlrp.passes.values import Values
from fxlrp.passes.watchers.base import Watcher
from fxlrp.rules.rule import CONDITION, Shares, added
from fxlrp.steps.batch_axis import item_sum


@dataclass(frozen=True)
class LedgerHead:
    """What is known of a ledger row before the graph runs.

    Attributes:
        node: the node's name.
        path: the module that the node belongs to.
        kind, rule: what the node is, and the rule that it runs.
        reasons: why it may absorb relevance.
        operands: the names of the nodes that it hands relevance to.
    """

    node: str
    path: str
    kind: str
    rule: str
    reasons: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()


class LedgerWatcher(Watcher):
    """Keeps the account of every node.

    Args:
        values: the forward values.

    Attributes:
        heads: one per row.
        amounts: per row, (batch,) in float64 each: received, a list of what each operand was handed, rescaled,
            then what was absorbed, by reason.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self.heads: list[LedgerHead] = []
        self.amounts: list[list[Any]] = []

    def shared(self, node: fx.Node, received: Relevance, shares: Shares) -> None:
        node_facts = facts(node)
        here = self.values.where(node)
        total = self._total_received(node, received)
        handed: dict[str, Any] = {}
        for (_, operand), share in zip(node_facts.operands, shares.operands, strict=True):
            if share is not None:
                amount = item_sum(share, *self.values.where(operand))
                handed[operand.name] = handed[operand.name] + amount if operand.name in handed else amount
        row: list[Any] = [total, list(handed.values())]
        for amount_of in (shares.rescaled, *shares.absorbed.values()):
            kept: Any = [] if amount_of is None else amount_of()
            tensors = kept if isinstance(kept, list) else [kept]
            row.append(added([item_sum(part, *here) for part in tensors]) if tensors else torch.zeros_like(total))
        reasons = list(shares.absorbed)
        if shares.rest is not None:
            row.append(added([total, *(-amount for amount in (*handed.values(), *row[3:]))]))
            reasons.append(shares.rest)
        rule = repr(node_facts.rule) if node_facts.rule else ""
        head = LedgerHead(node.name, node_facts.origin.path, str(node_facts.kind), rule, tuple(reasons), tuple(handed))
        self._enter(head, row)

    def record_condition(self, node: fx.Node, module: str, before: Any, after: Any) -> None:
        """Enter what a condition on the output of ``module`` took away."""
        here = self.values.where(node)
        sums: list[Any] = [item_sum(amount, *here) for amount in (before, after, before - after)]
        nothing: Any = torch.zeros_like(sums[0])
        head = LedgerHead(node.name, module, CONDITION, "", (CONDITION,), (node.name,))
        self._enter(head, [sums[0], [sums[1]], nothing, sums[2]])

    def results(self, flows: Flows) -> dict[str, Any]:
        return {"ledger": self.amounts}

    def _enter(self, head: LedgerHead, amounts: list[Any]) -> None:
        self.heads.append(head)
        self.amounts.append(amounts)

    def _total_received(self, node: fx.Node, received: Relevance) -> Any:
        if not isinstance(received, list):
            return item_sum(received, *self.values.where(node))
        # Results may have the batch elsewhere than their node: states of a recurrent layer, items taken apart.
        entries = {entry.args[1]: entry for entry in node.users if entry.target is getitem}
        return added([item_sum(part, *self.values.where(entries[index])) for index, part in received])

