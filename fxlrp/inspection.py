"""The face by which an explainer is read: how it was captured, its joins, its rules, its code, its picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import fx

from fxlrp.passes.joins import Join
from fxlrp.plan import Plan
from fxlrp.summary import Summary, summarize

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


class Inspection:
    """Base of :class:`fxlrp.Explainer`: what can be asked of a compiled explanation."""

    graph_module: fx.GraphModule

    def _captured_plan(self, asked: str) -> Plan:
        """The plan in use; the explainer has it, and raises where ``asked`` is not known yet."""
        raise NotImplementedError

    @property
    def capture(self) -> str:
        """How the model was captured: ``"symbolic"`` or ``"export"``."""
        return self._captured_plan("capture").captured.way

    @property
    def joins(self) -> list[Join]:
        """The adds where a skip and a residual branch meet."""
        return self._captured_plan("joins").joins

    def summary(self) -> Summary:
        """Print which node runs which rule, and why; return it as rows."""
        found = summarize(self._captured_plan("summary").forward)
        print(found)
        return found

    @property
    def graph(self) -> fx.Graph:
        """The graph of :attr:`graph_module`."""
        return self.graph_module.graph

    @property
    def emitted(self) -> fx.Graph:
        """The graph as the rules wrote it, before the optimiser worked on it: what pictures show."""
        return self._captured_plan("emitted").program(optimized=False).module.graph

    @property
    def code(self) -> str:
        """The Python code that runs, with a comment where a node's relevance begins."""
        from fxlrp.code import commented

        return commented(self.graph_module)

    @property
    def dot(self) -> str:
        """The picture as DOT text, the language of Graphviz; needs neither Graphviz nor its package."""
        from fxlrp.draw import dot_source

        return dot_source(cast("Explainer", self))

    def draw(self, path: str | os.PathLike[str], view: str = "both", *, depth: int | None = None) -> Path:
        """Draw the forward graph, the rules beside it and the way of relevance; return the file's path.

        Args:
            path: the file; its suffix says what to write: svg, png, pdf, or dot or gv for DOT text.
            view: ``"both"``, ``"forward"`` or ``"relevance"``.
            depth: draw modules at this depth as one box each; ``None``: everything.

        Raises:
            DrawError: it cannot be drawn as asked, or Graphviz is missing.
            MissingExtraError: the package ``graphviz`` is not installed.
        """
        from fxlrp.draw import draw

        return draw(cast("Explainer", self), path, view, depth=depth)
