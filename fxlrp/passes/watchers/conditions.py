"""Conditions: the relevance of some channels of a module (concept relevance propagation)."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.building import identifier
from fxlrp.passes.conditions import Point, calls_of, check_modules, check_points
from fxlrp.passes.relevance_flows import Flows
from fxlrp.passes.values import Values
from fxlrp.passes.watchers.base import Watcher
from fxlrp.passes.watchers.ledger import LedgerWatcher
from fxlrp.passes.writer import Writer
from fxlrp.rules.rule import added
from fxlrp.steps.batch_axis import Position, conditioned


class ConditionWatcher(Watcher):
    """Masks what readers outside of a conditioned module hand to the module's output.

    Args:
        writer: writes the graph.
        values: the forward values.
        names: the names of the modules.
        output: the node where relevance starts.
        ledger: gets a row for what a mask takes away; ``None``: no ledger is kept.

    Attributes:
        points: where masks are applied, one per mask argument of the program.

    Raises:
        PatternError: a name is no module of the graph.
    """

    def __init__(
        self, writer: Writer, values: Values, names: tuple[str, ...], output: fx.Node, ledger: LedgerWatcher | None
    ) -> None:
        graph = writer.forward.graph
        check_modules(graph, names)
        self.calls = [(name, calls_of(graph, name)) for name in names]
        self.writer, self.values, self.output, self.ledger = writer, values, output, ledger
        self.points: list[Point] = []

    def before(self, node: fx.Node, flows: Flows) -> None:
        around = [(name, inside) for name, calls in self.calls for inside in calls if node in inside]
        if not around or isinstance(flows.received[node], list):
            return
        unmasked = len(self.points)
        shares: dict[Any, Any] = {**flows.handed_to(node)}
        if node is self.output:
            shares[None] = flows.beginning
        for name, inside in sorted(around, key=lambda module: -len(module[1])):  # from the outermost in
            outside = [reader for reader in shares if reader not in inside]
            if outside:
                shares[outside[0]] = self._masked(node, name, added([shares.pop(reader) for reader in outside]))
        if len(self.points) > unmasked:
            flows.replace(node, added(list(shares.values())))

    def results(self, flows: Flows) -> dict[str, Any]:
        for name, calls in self.calls:
            check_points(name, calls, self.points)
        return {}

    def _masked(self, node: fx.Node, name: str, before: Any) -> Any:
        self.writer.scope(node, "Condition")
        position = self.values.positions.of(node)
        fixed = position is None or isinstance(position, Position)
        mask = self.writer.argument(f"mask{len(self.points)}_{identifier(name)}")
        kept = conditioned(before, mask, *([] if position is None else [position]))
        self.points.append(Point(name, node, position if fixed else None, fixed))
        if self.ledger is not None:
            self.ledger.record_condition(node, name, before, kept)
        return kept

