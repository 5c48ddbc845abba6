"""What views read of an explainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, fx

from fxlrp.passes.joins import Join
from fxlrp.results.explanation import Explanation
from fxlrp.results.ledger import Ledger
from fxlrp.runtime.timing import Step


class Readable(Protocol):
    """A compiled explanation that can be looked at; :class:`fxlrp.Explainer` is one."""

    @property
    def model_name(self) -> str:
        """The class of the model."""

    @property
    def preset_name(self) -> str:
        """The name of the preset."""

    @property
    def model_graph(self) -> fx.Graph:
        """The model's own graph, with the facts of its nodes."""

    @property
    def emitted(self) -> fx.Graph:
        """The graph as the rules wrote it."""

    @property
    def joins(self) -> list[Join]:
        """The adds where two branches meet."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every forward value in the last call, by node name."""

    def __call__(self, *inputs: Any, target: Any = None, against: Any = None) -> Explanation:
        """Explain inputs."""

    def ledger(self, *inputs: Any, target: Any = None, against: Any = None) -> Ledger:
        """The accounts of all nodes."""

    def relevance_of(
        self, *inputs: Any, nodes: Sequence[str], target: Any = None, against: Any = None
    ) -> dict[str, Tensor]:
        """The relevance of values inside the model, by node name."""

    def node_times(self, *inputs: Any, target: Any = None) -> dict[Step, float]:
        """The milliseconds of each node."""
