"""What a pass is: a step from graph to graph that states what it needs and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import fx

from fxlrp.common.errors import FxlrpError


class PassError(FxlrpError):
    """A pass was given a graph that it does not take, or made one that it must not make: a defect of fxlrp."""


class Pass(ABC):
    """Base of the passes over the forward graph.

    Calling a pass checks ``requires``, runs it, lints the graph and checks ``ensures``.
    """

    def requires(self, module: fx.GraphModule) -> None:  # noqa: B027, because many passes take any graph
        """Raise :class:`PassError` where the graph is not ready for this pass."""

    @abstractmethod
    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        """Do the work, in place or on a new graph."""

    def ensures(self, module: fx.GraphModule) -> None:  # noqa: B027, as above
        """Raise :class:`PassError` where the graph is not what this pass promises."""

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        self.requires(module)
        result = self.run(module)
        result.graph.lint()
        self.ensures(result)
        return result


def check(condition: bool, message: str) -> None:
    """Raise :class:`PassError` unless ``condition``."""
    if not condition:
        raise PassError(message)
