"""The summary: which node runs which rule, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from fxlrp.common.text_tables import html_table, table
from fxlrp.passes.facts import facts
from fxlrp.results.files import frame_writers, header, json_writer, polars, write
from fxlrp.vocabulary import Kind

_COLUMNS = ("node", "module", "kind", "rule", "why")


@dataclass(frozen=True)
class SummaryRow:
    """One node of the forward graph.

    Attributes:
        node: its name in the graph.
        path: the module that it belongs to.
        kind: what relevance does there; of a join, with the join's kind.
        operation: what it computes.
        rule: the rule that it runs; ``""`` where relevance is only moved.
        reason: who chose the rule.
    """

    node: str
    path: str
    kind: str
    operation: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """The rows of all nodes that relevance may pass, in the order of the forward pass; as text a table.

    Attributes:
        rows: one per node.
        start: the relevance that enters at the output: ``"probability"``, ``"logit"``, …
    """

    rows: Sequence[SummaryRow]
    start: str = ""

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> SummaryRow:
        return self.rows[index]

    def __str__(self) -> str:
        started = f"\nstart: {self.start}" if self.start else ""
        return table(_COLUMNS, self._lines()) + started

    def __repr__(self) -> str:
        return f"<Summary of {len(self.rows)} nodes>"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._lines(), f"start: {self.start}" if self.start else "")

    def to_frame(self) -> Any:
        """A ``polars.DataFrame`` with one row per node and a column per field of :class:`SummaryRow`.

        Raises:
            MissingExtraError: polars is not installed (extra ``tables``).
        """
        return polars().DataFrame([asdict(row) for row in self.rows])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file: ``.json``, ``.parquet`` or ``.csv``.

        Raises:
            InputError: the suffix is another one, or the file cannot be written.
            MissingExtraError: polars is needed and not installed (extra ``tables``).
        """
        content = {**header("summary"), "start": self.start, "rows": [asdict(row) for row in self.rows]}
        return write(path, {".json": json_writer(content), **frame_writers(self.to_frame)})

    def _lines(self) -> list[tuple[str, ...]]:
        return [(row.node, row.path, row.kind, row.rule, row.reason) for row in self.rows if row.rule]


def summarize(forward: fx.GraphModule, start: str = "") -> Summary:
    """The summary of a forward graph whose rules are assigned, and of what starts at its output."""
    rows = []
    for node in forward.graph.nodes:
        node_facts = facts(node)
        if node.op != "call_function" or not node_facts.signal or node_facts.kind is Kind.INPUT:
            continue
        kind = f"{node_facts.kind}: {node_facts.join.kind}" if node_facts.kind is Kind.JOIN else str(node_facts.kind)
        operation = node_facts.operation.name if node_facts.operation else "getitem"
        rule = "" if node_facts.rule is None else repr(node_facts.rule)
        rows.append(SummaryRow(node.name, node_facts.origin.path, kind, operation, rule, node_facts.reason))
    return Summary(rows, start)
