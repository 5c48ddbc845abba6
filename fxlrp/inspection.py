"""The face by which an explainer is read: its capture, its joins, its rules, its code, its picture, its times."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from fxlrp.common.errors import InputError
from fxlrp.passes.joins import Join
from fxlrp.results.profile import Profile, profiled
from fxlrp.results.summary import Summary, summarize
from fxlrp.runtime.plan import Plan, Recipe
from fxlrp.runtime.timing import ROUNDS, Spent, Step
from fxlrp.runtime.weights import Weights

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer
    from fxlrp.results.ledger import Ledger


class Inspection(ABC):
    """Base of :class:`fxlrp.Explainer`: what can be asked of a compiled explanation."""

    graph_module: fx.GraphModule
    _recipe: tuple[Recipe]
    _weights: Weights
    _last: tuple[Plan, list[Any]] | None

    @abstractmethod
    def _captured_plan(self, asked: str) -> Plan:
        """The plan in use; the explainer has it, and raises where ``asked`` is not known yet."""

    @abstractmethod
    def _measured(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any, *, optimized: bool, rounds: int
    ) -> tuple[Plan, dict[Step, Spent]]:
        """The plan for a call, and what each step of its program takes; the explainer has it."""

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
    def model_name(self) -> str:
        """The class of the model."""
        return type(self._weights.model).__name__

    @property
    def preset_name(self) -> str:
        """The name of the preset that it was compiled with."""
        (recipe,) = self._recipe
        return recipe.preset.name

    @property
    def graph(self) -> fx.Graph:
        """The graph of :attr:`graph_module`."""
        return self.graph_module.graph

    @property
    def model_graph(self) -> fx.Graph:
        """The model's own graph, in canonical form, with the facts that are known of each node and its rule."""
        return self._captured_plan("model_graph").forward.graph

    @property
    def emitted(self) -> fx.Graph:
        """The graph as the rules wrote it, before the optimiser worked on it: what pictures show."""
        return self._captured_plan("emitted").program(optimized=False).module.graph

    @property
    def code(self) -> str:
        """The Python code that runs, with a comment where a node's relevance begins."""
        from fxlrp.views.program_text import commented

        return commented(self.graph_module)

    @property
    def dot(self) -> str:
        """The picture as DOT text, the language of Graphviz; needs neither Graphviz nor its package."""
        from fxlrp.views.draw import dot_source

        return dot_source(cast("Explainer", self))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every forward value in the last call, by the name of its node; empty before the first one."""
        if self._last is None:
            return {}
        plan, forms = self._last
        inputs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in forms]
        found = plan.shapes(inputs).items()
        return {node.name: tuple(shape) for node, shape in found if isinstance(shape, torch.Size)}

    def node_times(self, *inputs: Any, target: Any = None, **named: Any) -> dict[Step, float]:
        """Milliseconds of each node, and of the propagation of its relevance, for the arguments of an explanation.

        The program as the rules wrote it, run step by step: where each node's time goes, before the optimiser.
        Of what an explanation takes :meth:`profile` tells.

        Raises:
            InputError, TargetError, CaptureError: as for an explanation; it is of one target an item.
        """
        _, found = self._measured(inputs, named, target, optimized=False, rounds=ROUNDS)
        return {step: spent.total for step, spent in found.items()}

    def profile(self, *inputs: Any, target: Any = None, rounds: int = ROUNDS, **named: Any) -> Profile:
        """Where the time of an explanation goes: by kind of node, in the forward pass and in relevance.

        The optimised program, run step by step by torch, whatever the backend; medians of ``rounds`` runs after
        some that do not count. Print it.

        Raises:
            InputError, TargetError, CaptureError: as for an explanation; it is of one target an item.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InputError(f"rounds={rounds!r}: give a whole number of at least 1")
        plan, found = self._measured(inputs, named, target, optimized=True, rounds=rounds)
        return profiled(plan.forward.graph, found)

    def draw(
        self, path: str | os.PathLike[str], view: str = "both", *, depth: int | None = None,
        ledger: Ledger | None = None,
    ) -> Path:  # fmt: skip
        """Draw the forward graph, the rules beside it and the way of relevance; return the file's path.

        Args:
            path: the file; its suffix says what to write: svg, png, pdf, or dot or gv for DOT text.
            view: ``"both"``, ``"forward"`` or ``"relevance"``.
            depth: draw modules at this depth as one box each; ``None``: everything.
            ledger: of :meth:`Explainer.ledger`: also draw how much relevance flows where, what splits make of it,
                and what absorbs it.

        Raises:
            DrawError: it cannot be drawn as asked, or Graphviz is missing.
            MissingExtraError: the package ``graphviz`` is not installed.
        """
        from fxlrp.views.draw import draw

        return draw(cast("Explainer", self), path, view, depth=depth, ledger=ledger)

    def explore(
        self, images: Any = None, *, target: Any = None, host: str = "localhost", port: int = 8080,
        browser: bool = True,
    ) -> None:  # fmt: skip
        """Serve the graph to a browser in Model Explorer, until it is stopped.

        Arguments and errors are those of :func:`fxlrp.views.explorer.explore`.
        """
        from fxlrp.views.explorer import explore

        explore(cast("Explainer", self), images, target=target, host=host, port=port, browser=browser)

    def _repr_svg_(self) -> str | None:
        """The picture, for a notebook; small enough to look at. ``None`` where it cannot be drawn."""
        from fxlrp.views.draw import thumbnail

        return thumbnail(cast("Explainer", self))

    def report(
        self, images: Tensor, path: str | os.PathLike[str], *, target: Any = None,
        class_names: Sequence[str] | None = None, photos: Sequence[Any] | None = None, title: str | None = None,
    ) -> Path:  # fmt: skip
        """Write a page on how relevance flows through the model: one HTML file, without a network.

        Photograph and map, relevance at every stage, how each join shares it, the accounts of all nodes, and sums
        against what entered. Arguments and errors are those of :func:`fxlrp.report.write_report`.
        """
        from fxlrp.views.report import write_report

        return write_report(
            cast("Explainer", self), images, path, target=target, class_names=class_names, photos=photos, title=title
        )
