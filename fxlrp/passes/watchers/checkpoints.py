"""The relevance at the inputs of modules."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.common.errors import PatternError
from fxlrp.passes.facts import facts
from fxlrp.passes.relevance_flows import Flows
from fxlrp.passes.watchers.base import Watcher


class CheckpointWatcher(Watcher):
    """Returns the relevance that the nodes of a module hand to values from outside the module.

    Args:
        forward: the forward graph.
        names: the names of the modules.
    """

    def __init__(self, forward: fx.Graph, names: tuple[str, ...]) -> None:
        self.forward = forward
        self.names = names

    def results(self, flows: Flows) -> dict[str, Any]:
        return {"checkpoints": {name: self._at_input_of(name, flows) for name in self.names}}

    def _at_input_of(self, name: str, flows: Flows) -> Any:
        by_value: dict[fx.Node, Any] = {}
        inside = {n for n in self.forward.nodes if any(path == name for path, _ in facts(n).origin.modules)}
        for (operand, reader), share in flows.handed.items():
            if reader in inside and operand not in inside:
                by_value[operand] = by_value[operand] + share if operand in by_value else share
        if not by_value:
            raise PatternError(
                f"checkpoint {name!r} is no module of this model that relevance passes through; "
                "dropout and identities leave no trace in the graph"
            )
        return next(iter(by_value.values())) if len(by_value) == 1 else tuple(by_value.values())
