"""The relevance of values inside the model."""

from __future__ import annotations

from typing import Any

from fxlrp.common.errors import PatternError
from fxlrp.passes.relevance_flows import Flows
from fxlrp.passes.watchers.base import Watcher


class NodeWatcher(Watcher):
    """Returns the relevance of forward nodes.

    Args:
        names: the names of the nodes.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def results(self, flows: Flows) -> dict[str, Any]:
        by_name = {node.name: value for node, value in flows.received.items()}
        return {"nodes": {name: self._relevance_of(name, by_name.get(name)) for name in self.names}}

    def _relevance_of(self, name: str, relevance: Any) -> Any:
        if relevance is None or isinstance(relevance, list):
            raise PatternError(f"node {name!r}: no relevance reaches a node of this name, or it is a list")
        return relevance
