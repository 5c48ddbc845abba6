"""The ledger: where relevance went, node by node."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.errors import PropagationError
from fxlrp.common.text_tables import html_table, table
from fxlrp.passes.request import Results
from fxlrp.passes.watchers.ledger import LedgerHead
from fxlrp.rules.rule import REASONS

if TYPE_CHECKING:
    import numpy as np

_COLUMNS = ("node", "kind", "rule", "received", "handed on", "absorbed", "reason", "rescaled")


@dataclass(frozen=True)
class Row:
    """The account of one node; amounts are (batch,), float64.

    Attributes:
        node: the node's name in the graph.
        path: the module that it belongs to.
        kind, rule: what it is, and the rule that it ran.
        received: the relevance that reached it.
        to: what it handed to each of its operands, by the name of the operand's node.
        handed_on: the sum of that.
        absorbed: what it kept, summed over ``by_reason``.
        by_reason: what it kept, by reason.
        rescaled: what had a vanishing denominator and was handed on all the same.
    """

    node: str
    path: str
    kind: str
    rule: str
    received: Tensor
    to: dict[str, Tensor]
    handed_on: Tensor
    absorbed: Tensor
    by_reason: dict[str, Tensor]
    rescaled: Tensor

    @property
    def reason(self) -> str:
        """The reasons why relevance was absorbed, ``""`` where none was."""
        return ", ".join(name for name, amount in self.by_reason.items() if bool(amount.abs().max() > 0))

    @property
    def error(self) -> Tensor:
        """Received − handed on − absorbed: (batch,), zero up to rounding."""
        return self.received - self.handed_on - self.absorbed


@dataclass(frozen=True)
class Ledger:
    """The accounts of all nodes, from the output back to the input.

    Attributes:
        rows: one per node that relevance passed.
        start: (batch,), the relevance that entered at the output.
        relevance: (batch,), the sum that arrived at the inputs.
        absorbed: by reason, the (batch,) total over all nodes; stabilizer, bias, constant and padding always have
            an entry, others where they occur.
    """

    rows: list[Row]
    start: Tensor
    relevance: Tensor
    absorbed: dict[str, Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def error(self) -> Tensor:
        """Σ relevance + absorbed − start: (batch,), zero up to rounding."""
        total = self.relevance - self.start
        for amount in self.absorbed.values():
            total = total + amount
        return total

    @property
    def telling(self) -> list[Row]:
        """The rows without those of nodes that hand on whatever they receive: activations and norms."""
        return [row for row in self.rows if row.kind not in ("pointwise", "normalisation")]

    def share(self, amount: Tensor) -> float:
        """An amount, (batch,), as a share of what entered: means over the batch; zero where nothing entered.

        Where less than nothing entered, its share has that sign too: all of -2 logits is 100 %.
        """
        start = float(self.start.abs().mean())
        return float((amount * torch.where(self.start < 0, -1, 1)).mean()) / start if start else 0.0

    def __str__(self) -> str:
        """A table: amounts are means over the batch, in percent of the start; silent nodes are left out."""
        return table(_COLUMNS, self._lines())

    def __repr__(self) -> str:
        kept = ", ".join(f"{name} {self._percent(amount)}" for name, amount in self.absorbed.items() if amount.any())
        arrived = f"{100 * self.share(self.relevance):.2f} % arrived" if bool(self.start.any()) else "nothing entered"
        shown = f"{arrived}, {f'absorbed: {kept}' if kept else 'nothing was absorbed'}"
        return f"<Ledger of {len(self.rows)} nodes, {len(self.start)} items: {shown}>"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._lines(), repr(self).strip("<>"))

    # As data ------------------------------------------------------------------------------------------

    def to_numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Amounts as arrays, float64, by name.

        ``start``, ``relevance``, ``error`` and ``absorbed.REASON`` are (batch,); of the nodes in their order,
        ``node`` holds the names, and ``received``, ``handed_on``, ``absorbed``, ``rescaled`` and ``node_error``
        are (nodes, batch).
        """
        from fxlrp.results.ledger_data import arrays

        return arrays(self)

    def to_frame(self) -> Any:
        """A ``polars.DataFrame`` with one row per node and item.

        Its columns are ``node``, ``path``, ``kind``, ``rule``, ``item``, ``received``, ``handed_on``, ``absorbed``,
        ``rescaled``, ``error`` and ``reason``; amounts are in the unit of the start.

        Raises:
            MissingExtraError: polars is not installed (extra ``tables``).
        """
        from fxlrp.results.ledger_data import frame

        return frame(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file: ``.json`` or ``.npz`` with all numbers, ``.parquet`` or ``.csv`` with the table.

        Raises:
            InputError: the suffix is another one, or the file cannot be written.
            MissingExtraError: polars is needed and not installed (extra ``tables``).
        """
        from fxlrp.results.ledger_data import save

        return save(self, path)

    def _lines(self) -> list[tuple[str, ...]]:
        lines = [
            (row.node, row.kind, row.rule, *map(self._percent, (row.received, row.handed_on, row.absorbed)),
             row.reason, self._percent(row.rescaled))
            for row in self.telling
        ]  # fmt: skip
        totals = [(f"absorbed: {name}", "", "", "", "", self._percent(v), "", "") for name, v in self.absorbed.items()]
        return [*lines, *totals, ("at the input", "", "", self._percent(self.relevance), "", "", "", "")]

    def _percent(self, amount: Tensor) -> str:
        return f"{100 * self.share(amount):.4f} %" if bool(self.start.any()) else f"{float(amount.mean()):.4g}"


def ledger_of(results: Results, heads: Sequence[LedgerHead], arrived: Tensor) -> Ledger:
    """The ledger that a program computed.

    Args:
        results: of a program that keeps a ledger.
        heads: what was known of each row before it ran.
        arrived: (batch,), the relevance of all inputs.
    """
    start = results.start.double()
    if len(start) != len(arrived):  # all inputs are one item, and a start entered at each row of the output
        start = start.sum().reshape(1)
    rows = []
    absorbed = {reason: start.new_zeros(start.shape) for reason in REASONS}
    for head, amounts in zip(heads, results.ledger, strict=True):
        received, handed, rescaled, *rest = pytree.tree_map_only(
            Tensor, partial(_of_items, node=head.node, count=len(start)), amounts
        )
        by_reason = dict(zip(head.reasons, rest, strict=True))
        for reason, amount in by_reason.items():
            absorbed[reason] = absorbed.get(reason, 0) + amount
        kept = sum(rest, start.new_zeros(start.shape))
        to = dict(zip(head.operands, handed, strict=True))
        handed_on = sum(handed, start.new_zeros(start.shape))
        rows.append(
            Row(head.node, head.path, head.kind, head.rule, received, to, handed_on, kept, by_reason, rescaled)
        )
    return Ledger(rows, start, arrived, absorbed)


def _of_items(amount: Tensor, node: str, count: int) -> Tensor:
    """The amounts of the items, where a batch that was padded has more entries, of which nothing is explained.

    Raises:
        PropagationError: relevance lies in entries that are of no item.
    """
    if amount.dim() == 0 or len(amount) == count:
        return amount
    if len(amount) < count or bool(amount[count:].any()):
        raise PropagationError(
            f"{node} has {len(amount)} entries for {count} items, and the ledger cannot tell whose they are: ask for "
            "the ledger of one item at a time"
        )
    return amount[:count]
