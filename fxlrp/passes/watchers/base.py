"""What a watcher of the reverse sweep is."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.relevance_flows import Flows, Relevance
from fxlrp.rules.rule import Shares


class Watcher:
    """Base of the watchers; by default it does nothing."""

    def before(self, node: fx.Node, flows: Flows) -> None:
        """See a forward node that has all its relevance, before its rule shares it out."""

    def shared(self, node: fx.Node, received: Relevance, shares: Shares) -> None:
        """See what a node received, and what its rule made of it."""

    def results(self, flows: Flows) -> dict[str, Any]:
        """What to return, by the name of a field of :class:`~fxlrp.passes.request.Results`."""
        return {}
