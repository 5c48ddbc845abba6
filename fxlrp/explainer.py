"""The explainer: inputs in, relevance out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxlrp.common.errors import ConditionError, InputError
from fxlrp.interop import captum
from fxlrp.passes.joins import Join
from fxlrp.passes.request import Request
from fxlrp.results.explanation import Explanation, explanation_of
from fxlrp.results.ledger import Ledger, ledger_of
from fxlrp.results.profile import Profile, profiled
from fxlrp.results.summary import Summary, summarize
from fxlrp.rules.starts import told
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.prepared import Prepared
from fxlrp.runtime.recipe import Recipe
from fxlrp.runtime.slices import check_chunk, check_nodes
from fxlrp.runtime.targets import check_one_target, separate_target
from fxlrp.runtime.timing import ROUNDS, Spent, Step, measure

if TYPE_CHECKING:
    from fxlrp.loading.preprocessing import InputFormat
    from fxlrp.maps.placing import Box


class Explainer(nn.Module):
    """A compiled explanation, made by :func:`fxlrp.compile`.

    It uses the model's own tensors and follows their updates; it never changes the model.
    ``.to(...)`` gives it converted copies, which follow the model too.

    Attributes:
        graph_module: the whole computation, a plain ``torch.fx.GraphModule`` that maps
            ``(*inputs, target)`` to a dict.
        differentiable: whether an explanation keeps its autograd graph.
        backend: what runs it, ``"eager"``, ``"inductor"`` or ``"cudagraphs"``.
    """

    graph_module: fx.GraphModule

    attribute = captum.attribute
    multiplies_by_inputs = True

    if TYPE_CHECKING:  # torch's own promises Any

        def __call__(
            self, *inputs: Any, target: Any = None, against: Any = None, conditions: Any = None,
            chunk: Any = None, **named: Any,
        ) -> Explanation:  # fmt: skip
            """Explain ``inputs``, see :meth:`forward`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._show_program()

    def forward(
        self, *inputs: Any, target: Any = None, against: Any = None, conditions: Any = None, chunk: int | None = None,
        **named: Any,
    ) -> Explanation:  # fmt: skip
        """Explain ``inputs``; a target may also follow them as the last positional argument.

        Args:
            *inputs: what the model takes, tensors (batch, ...), as its ``forward`` takes it.
            **named: the same, by name.
            target: the class to explain: ``None`` (the predicted one), an int, or an integer
                tensor (batch,). Several in one call, which share the forward pass and all else
                that does not depend on the class: a list or a range of ints, for every item, or
                an integer tensor (batch, targets).
            against: the classes to explain the target against, in place of what ``start`` says: an int, several
                ints for every item, or an integer tensor (batch,) or (batch, rivals). Relevance then sums to the
                target's logit minus the mean logit of the rivals, weighted by their probabilities among
                themselves: of one rival, to the log of the odds between the two.
            conditions: ``{module name: channels}``: of the relevance at the output of the module keep
                these channels alone (concept relevance propagation, Achtibat et al., Nature Machine
                Intelligence 2023); of several modules one after the other. Channels are a list of
                numbers, or a mask, boolean or floating point, that broadcasts to the output without
                the batch. A list of such dicts: several explanations; with as many targets, explanation k has
                target k and condition k.
            chunk: how many targets or conditions to explain at once, which bounds the memory; each chunk runs the
                forward pass anew. ``None``: all.

        Raises:
            InputError: an input does not fit the model.
            TargetError: the target is no class of the model, or a rival is none, or is the target itself.
            ConditionError: a condition does not fit the output of its module.
            PatternError: a condition names no module that relevance passes.
            CaptureError: this first call shows that the model cannot be captured.
        """
        inputs, target = self._separate(inputs, named, target)
        return self.explain(inputs, named, target=target, against=against, conditions=conditions, chunk=chunk)

    def explain(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any] | None = None, *, target: Any = None,
        against: Any = None, conditions: Any = None, chunk: int | None = None,
    ) -> Explanation:  # fmt: skip
        """The same for a tuple of inputs and a dict of those by name; no target is looked for among them.

        Arguments and errors are those of a call.
        """
        check_chunk(chunk)
        prepared = self._prepare(inputs, named or {}, target, conditions, against)
        return explanation_of(self._engine.run(prepared, Request(), chunk), prepared)

    def heatmap(self, *inputs: Any, target: Any = None, against: Any = None, **named: Any) -> Tensor:
        """Relevance summed over channels, (batch, height, width).

        The same as ``fxlrp.heatmap(explainer(images).relevance)``. Arguments and errors are those of an explanation.

        Raises:
            InputError: the model takes several inputs, or one without channels.
        """
        prepared = self._prepared(inputs, named, target, against=against)
        if len(prepared.inputs) != 1 or prepared.inputs[0].dim() < 3:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in prepared.inputs)
            raise InputError(f"a heatmap is of one input (batch, channels, ...), not of {shapes}")
        relevance: Tensor
        (relevance,) = self._engine.run(prepared, Request()).relevance
        return relevance.sum(dim=2 if prepared.targets == "several" else 1)

    def relevance_of(
        self, *inputs: Any, nodes: Sequence[str], target: Any = None, against: Any = None, chunk: int | None = None,
        **named: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The relevance of values inside the model, by the name of the node that makes each.

        The names are those of ``summary()``, ``ledger()`` and ``joins``; other arguments are those of an explanation.

        Args:
            *inputs: what the model takes.
            nodes: names of nodes.
            target: the class to explain, as for an explanation, one per item. Where all inputs are one item
                (``compile(batch=None)``), there may be several.
            against: as for an explanation.
            chunk: how many targets to explain at once.
            **named: what the model takes, by name.

        Returns:
            In the shape of each value, several targets in front.

        Raises:
            PatternError: no relevance reaches a node of a name that is given.
            InputError, TargetError, CaptureError: as for an explanation.
        """
        check_chunk(chunk)
        check_nodes(nodes)
        one = "" if self.recipe.items.whole else "the relevance of nodes"
        prepared = self._prepared(inputs, named, target, against=against, one_target=one)
        return self._engine.run(prepared, Request(nodes=tuple(nodes)), chunk).nodes

    def ledger(
        self, *inputs: Any, target: Any = None, against: Any = None, conditions: Any = None, **named: Any
    ) -> Ledger:
        """What every node received, handed on and absorbed, for the same arguments as an explanation.

        What a condition took away has a row of its own, and the reason ``"condition"``.

        Raises:
            InputError, TargetError, ConditionError, PatternError, CaptureError: as for an explanation; a
                ledger is of one target per item, and of one condition.
        """
        prepared = self._prepared(inputs, named, target, conditions, against=against, one_target="a ledger")
        if prepared.conditions is not None and prepared.conditions.several:
            raise ConditionError("a ledger is of one condition, a dict: ask for one at a time")
        request = Request(ledger=True)
        results = self._engine.run(prepared, request)
        arrived = prepared.plan.arrived(results.relevance, prepared.inputs)
        return ledger_of(results, self._engine.program(prepared, request).ledger_heads, arrived)

    # What is compiled -----------------------------------------------------------------------------

    @property
    def capture(self) -> str:
        """How the model was captured: ``"symbolic"`` or ``"export"``."""
        return self._engine.captured_plan("capture").captured.way

    @property
    def joins(self) -> list[Join]:
        """The adds where a skip and a residual branch meet."""
        return self._engine.captured_plan("joins").joins

    def summary(self) -> Summary:
        """Print which node runs which rule, and why; return it as rows."""
        plan = self._engine.captured_plan("summary")
        summary = summarize(plan.forward, told(plan.start))
        print(summary)
        return summary

    @property
    def recipe(self) -> Recipe:
        """What it was compiled with."""
        return self._engine.recipe

    @property
    def differentiable(self) -> bool:
        """Whether an explanation keeps its autograd graph."""
        return self.recipe.differentiable

    @property
    def backend(self) -> str:
        """What runs it."""
        return self._engine.backend_name

    @property
    def model_name(self) -> str:
        """The class of the model."""
        return type(self._engine.model).__name__

    @property
    def preset_name(self) -> str:
        """The name of the preset that it was compiled with."""
        return self.recipe.chosen_preset.name

    @property
    def graph(self) -> fx.Graph:
        """The graph of :attr:`graph_module`."""
        return self.graph_module.graph

    @property
    def model_graph(self) -> fx.Graph:
        """The model's own graph, in canonical form, with the facts that are known of each node and its rule."""
        return self._engine.captured_plan("model_graph").forward.graph

    @property
    def emitted(self) -> fx.Graph:
        """The graph as the rules wrote it, before the optimiser worked on it: what pictures show."""
        return self._engine.captured_plan("emitted").as_emitted.module.graph

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every forward value in the last call, by the name of its node; empty before the first one."""
        return self._engine.shapes

    # Views ----------------------------------------------------------------------------------------

    @property
    def code(self) -> str:
        """The Python code that runs, with a comment where a node's relevance begins."""
        from fxlrp.views.program_text import commented

        return commented(self.graph_module)

    @property
    def dot(self) -> str:
        """The picture as DOT text, the language of Graphviz; needs neither Graphviz nor its package."""
        from fxlrp.views.draw import dot_source

        return dot_source(self)

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

        return draw(self, path, view, depth=depth, ledger=ledger)

    def explore(
        self, images: Any = None, *, target: Any = None, host: str = "localhost", port: int = 8080,
        browser: bool = True,
    ) -> None:  # fmt: skip
        """Serve the graph to a browser in Model Explorer, until it is stopped.

        Arguments and errors are those of :func:`fxlrp.views.explorer.explore`.
        """
        from fxlrp.views.explorer import explore

        explore(self, images, target=target, host=host, port=port, browser=browser)

    def report(
        self, images: Tensor, path: str | os.PathLike[str], *, target: Any = None, against: Any = None,
        class_names: Sequence[str] | None = None, photos: Sequence[Any] | None = None,
        boxes: Sequence[Box | None] | None = None, names: Sequence[str] | None = None, title: str | None = None,
    ) -> Path:  # fmt: skip
        """Write a page on how relevance flows through the model: one HTML file, without a network.

        Photograph and map with a slider between them, a switch between classes, what the model says, the ledger in
        words; relevance at every stage, how each join shares it, the accounts of all nodes. Arguments and errors are
        those of :func:`fxlrp.report.write_report`.
        """
        from fxlrp.views.report import write_report

        return write_report(self, images, path, target=target, against=against, class_names=class_names, photos=photos,
                            boxes=boxes, names=names, title=title)  # fmt: skip

    def __repr__(self) -> str:
        start = self.recipe.start if isinstance(self.recipe.start, str) else told(self.recipe.start)
        return f"<Explainer of {self.model_name}: preset {self.preset_name}, start {start}, backend {self.backend}>"

    def _repr_svg_(self) -> str | None:
        """The picture, for a notebook; small enough to look at. ``None`` where it cannot be drawn."""
        from fxlrp.views.draw import thumbnail

        return thumbnail(self)

    # Times ----------------------------------------------------------------------------------------

    def node_times(self, *inputs: Any, target: Any = None, **named: Any) -> dict[Step, float]:
        """Milliseconds of each node, and of the propagation of its relevance, for the arguments of an explanation.

        The program as the rules wrote it, run step by step: where each node's time goes, before the optimiser.
        Of what an explanation takes :meth:`profile` tells.

        Raises:
            InputError, TargetError, CaptureError: as for an explanation; it is of one target per item.
        """
        _, times = self._measured(inputs, named, target, optimized=False, rounds=ROUNDS)
        return {step: spent.total for step, spent in times.items()}

    def profile(self, *inputs: Any, target: Any = None, rounds: int = ROUNDS, **named: Any) -> Profile:
        """Where the time of an explanation goes: by kind of node, in the forward pass and in relevance.

        The optimised program, run step by step by torch, whatever the backend; medians of ``rounds`` runs after
        some that do not count. Print it.

        Raises:
            InputError, TargetError, CaptureError: as for an explanation; it is of one target per item.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InputError(f"rounds={rounds!r}: give a whole number of at least 1")
        prepared, times = self._measured(inputs, named, target, optimized=True, rounds=rounds)
        return profiled(prepared.plan.forward.graph, times)

    def _measured(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any, *, optimized: bool, rounds: int
    ) -> tuple[Prepared, dict[Step, Spent]]:
        prepared = self._prepared(inputs, named, target, one_target="a profile")
        if prepared.autocast:
            raise InputError("steps are not timed under torch.autocast: convert the explainer, by .to(dtype)")
        request = Request(optimizations=None if optimized else prepared.plan.known_when_emitted)
        program = self._engine.program(prepared, request)
        return prepared, measure(program.module, (*prepared.inputs, prepared.target), rounds)

    # Files ----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Save the explanation as a file that runs without the model's Python code; :func:`fxlrp.load` reads it.

        It holds the program, as ``torch.export`` writes it down, and the weights as they are now. The batch
        stays free; other axes are those of the examples. The result is checked against this explainer.

        Args:
            path: the file; its name ends in .pt2.
            example_inputs: what the model takes: a tensor, a tuple of positional or a dict of keyword
                arguments; ``None``: inputs like those of the last call.

        Raises:
            ExportError: it cannot be exported, or nothing says what the inputs look like.
            InputError: an example does not fit the model.
        """
        from fxlrp.exports.saved import save

        return save(self._engine, path, example_inputs)

    def export_aot(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Compile the explanation ahead of time, by AOTInductor, into a package without Python.

        :func:`fxlrp.load` reads it, and so does ``torch::inductor::AOTIModelPackageLoader`` of C++. It runs
        on the kind of device that it was compiled on. Arguments are those of :meth:`save`.

        Raises:
            ExportError, InputError: as for :meth:`save`.
            BackendError: Inductor cannot compile here.
        """
        from fxlrp.exports.saved import package

        return package(self._engine, path, example_inputs)

    def export_onnx(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Write the explanation as ONNX, and check it in onnxruntime.

        Its inputs are the model's, by name, and ``target``, (batch,) of int64, where -1 asks for the predicted
        class; its outputs are ``relevance``, ``output``, ``explained_class``, ``start``, ``checkpoint.NAME``.
        The batch is a free axis. Arguments are those of :meth:`save`; the name of the file ends in .onnx.

        Raises:
            ExportError, InputError: as for :meth:`save`.
            MissingExtraError: onnx, onnxscript or onnxruntime is not installed (extra ``onnx``).
        """
        from fxlrp.exports.onnx import export_onnx

        return export_onnx(self._engine, path, example_inputs)

    def export_web(
        self, folder: str | os.PathLike[str], input_format: InputFormat, classes: Sequence[str] | None = None, *,
        title: str = "", runtime: str | os.PathLike[str] | None = None,
    ) -> Path:  # fmt: skip
        """Write a folder with a page that explains photographs in the browser, on the visitor's machine.

        Any static server serves it; it needs no network, and no picture leaves the machine. Arguments and errors
        are those of :func:`fxlrp.exports.web.export_web`.
        """
        from fxlrp.exports.web import export_web

        return export_web(self._engine, folder, input_format, classes, title=title, runtime=runtime)

    # Captum ---------------------------------------------------------------------------------------

    @property
    def forward_func(self) -> nn.Module:
        """The model."""
        return self._engine.model

    def has_convergence_delta(self) -> bool:
        """``True``: :meth:`attribute` can return a delta."""
        return True

    # torch ----------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, by copy.deepcopy or pickle, is compiled anew from the copied model.
        weights = self._engine.weights
        return _rebuild, (type(self), self._engine.model, self.recipe, weights.dtype, weights.device)

    def __getattr__(self, name: str) -> Any:
        if name == "graph_module":
            self._engine.captured_plan(name)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Explainer:
        # nn.Module would convert the tensors in place, and they are the model's.
        self._engine.weights.convert(fn)
        self._engine.weights.refresh()
        return self

    # Arguments ------------------------------------------------------------------------------------

    def _separate(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any
    ) -> tuple[tuple[Any, ...], Any]:
        found, wanted = separate_target(self._engine.input_counts, inputs, named, target)
        if len(found) < len(inputs) <= self._engine.input_counts[1] and isinstance(wanted, Tensor):
            name = self._engine.parameter(len(found))
            warnings.warn(
                f"the last positional argument is taken for the target, not for {name!r}: say target= or {name}=",
                stacklevel=4,
            )
        return found, wanted

    def _prepared(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any, conditions: Any = None, *,
        against: Any = None, one_target: str = "",
    ) -> Prepared:  # fmt: skip
        """A call as it was written; ``one_target`` names what takes only one target per item."""
        inputs, target = self._separate(inputs, named, target)
        prepared = self._prepare(inputs, named, target, conditions, against)
        if one_target:
            check_one_target(prepared.target, one_target)
        return prepared

    def _prepare(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any], target: Any, conditions: Any, against: Any
    ) -> Prepared:
        prepared = self._engine.prepare(inputs, named, target, conditions, against)
        self._show_program()
        return prepared

    def _show_program(self) -> None:
        """Let ``graph_module`` be the program of the plan in use."""
        program = self._engine.current_program
        if program is not None and self._modules.get("graph_module") is not program:
            self.graph_module = program


def _rebuild(
    kind: type[Explainer], model: nn.Module, recipe: Recipe, dtype: torch.dtype | None, device: Any
) -> Explainer:
    explainer = kind(Engine(model, recipe))
    return explainer if dtype is None and device is None else explainer.to(device=device, dtype=dtype)
