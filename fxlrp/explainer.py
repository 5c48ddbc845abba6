"""The explainer: inputs in, relevance out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.attribution import Attribution
from fxlrp.backends import EAGER, Compiled, raise_for
from fxlrp.capture import Call, bind, input_counts
from fxlrp.conditions import Conditions, count_rows, masks, read_conditions
from fxlrp.errors import (
    BackendError,
    CaptureError,
    ConditionError,
    ExportError,
    InputError,
    NotCapturedError,
    TargetError,
)
from fxlrp.explanation import Explanation
from fxlrp.inputs import InputSpec, check_examples, check_inputs, check_target, forward_shapes
from fxlrp.ledger import Ledger, build_ledger
from fxlrp.passes.facts import has_facts
from fxlrp.passes.joins import Join
from fxlrp.passes.optimize import can_pack
from fxlrp.plan import Plan, Recipe, may_export
from fxlrp.rows import check_chunk, run_rows
from fxlrp.rules.items import item_sum
from fxlrp.summary import Summary, summarize
from fxlrp.weights import Weights


class Explainer(Attribution, nn.Module):
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

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, backend: str, differentiable: bool,
        recompile: Callable[[nn.Module], Explainer],
    ) -> None:
        super().__init__()
        self.differentiable = differentiable
        self.backend = backend
        self._compiled: dict[int, Compiled] = {}
        # In a tuple, for nn.Module would register a module as a part of this one.
        self._recipe = (recipe,)
        self._weights = Weights(model)
        self._plan: Plan | None = None
        self._plans: list[Plan] = []
        self._untraceable: CaptureError | None = None
        self._last: tuple[Plan, list[Any]] | None = None  # the form of the inputs of the last call
        self._recompile = recompile
        self._counts = input_counts(model) if isinstance(model, nn.Module) else (0, 0)

    def _capture(self, example_inputs: Any = None) -> None:
        """Capture the model symbolically; where that cannot be, from examples, now or at the first call."""
        model, (recipe,) = self._weights.model, self._recipe
        recipe.check(model)
        try:
            self._adopt(recipe.traced(model))
        except CaptureError as reason:
            if not may_export(reason):
                raise
            self._untraceable = reason
        if example_inputs is not None:
            args, kwargs = _arguments(example_inputs)
            self._plan_for(*bind(model, args, kwargs))

    def forward(
        self, *inputs: Any, target: Any = None, conditions: Any = None, chunk: int | None = None, **named: Any
    ) -> Explanation:
        """Explain ``inputs``; a target may also follow them as the last positional argument.

        Args:
            *inputs: what the model takes, tensors (batch, ...), as its ``forward`` takes it.
            **named: the same, by name.
            target: the class to explain: ``None`` (the predicted one), an int, or an integer
                tensor (batch,). Several in one call, which share the forward pass and all else
                that does not depend on the class: a list or a range of ints, for every item, or
                an integer tensor (batch, rows).
            conditions: ``{module name: channels}``: of the relevance at the output of the module keep
                these channels alone (concept relevance propagation, Achtibat et al., Nature Machine
                Intelligence 2023); of several modules one after the other. Channels are a list of
                numbers, or a mask, of truths or floating point, that broadcasts to the output without
                the batch. A list of such dicts: as many rows; with as many targets, row k has target k
                and condition k.
            chunk: how many rows to compute at once, which bounds the memory; each chunk runs the
                forward pass anew. ``None``: all.

        Raises:
            InputError: an input does not fit the model.
            TargetError: the target is no class of the model.
            ConditionError: a condition does not fit the output of its module.
            PatternError: a condition names no module that relevance passes.
            CaptureError: this first call shows that the model cannot be captured.
        """
        check_chunk(chunk)
        return self._explain(*self._split(inputs, named, target), conditions=conditions, chunk=chunk)

    def _explain(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any, *, conditions: Any = None,
        chunk: int | None = None,
    ) -> Explanation:
        plan, tensors, target = self._prepare(inputs, named, target)
        results = self._run(plan, tensors, target, read_conditions(conditions), chunk=chunk)
        relevance = results["relevance"]
        return Explanation(
            relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
            output=pytree.tree_unflatten(results["output"], plan.returns),
            target=results["target"],
            start=results["start"],
            checkpoints=results["checkpoints"],
            inputs=tuple(spec.name for spec in plan.inputs),
        )

    def heatmap(self, *inputs: Any, target: Any = None, **named: Any) -> Tensor:
        """Relevance summed over channels, (batch, height, width), at less cost than relevance itself.

        The same as ``fxlrp.heatmap(explainer(images).relevance)`` but for rounding: where the first
        layer's rule does not look at pixel values, its channels are summed before they are made.
        Arguments and errors are those of an explanation.

        Raises:
            InputError: the model takes several inputs, or one without channels.
        """
        plan, tensors, target = self._prepare(*self._split(inputs, named, target))
        if len(tensors) != 1 or tensors[0].dim() < 3:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise InputError(f"a heatmap is of one input (batch, channels, ...), not of {shapes}")
        heat: Tensor
        (heat,) = self._run(plan, tensors, target, None, heatmap=True)["relevance"]
        return heat

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

        return save(self, path, example_inputs)

    def export_aot(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Compile the explanation ahead of time, by AOTInductor, into a package without Python.

        :func:`fxlrp.load` reads it, and so does ``torch::inductor::AOTIModelPackageLoader`` of C++. It runs
        on the kind of device that it was compiled on. Arguments are those of :meth:`save`.

        Raises:
            ExportError, InputError: as for :meth:`save`.
            BackendError: Inductor cannot compile here.
        """
        from fxlrp.exports.saved import package

        return package(self, path, example_inputs)

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

        return export_onnx(self, path, example_inputs)

    def ledger(self, *inputs: Any, target: Any = None, conditions: Any = None, **named: Any) -> Ledger:
        """What every node received, handed on and absorbed, for the same arguments as an explanation.

        What a condition took away has a row of its own, and the reason ``"condition"``.

        Raises:
            InputError, TargetError, ConditionError, PatternError, CaptureError: as for an explanation; a
                ledger is of one target an item, and of one condition.
        """
        plan, tensors, target = self._prepare(*self._split(inputs, named, target))
        asked = read_conditions(conditions)
        if target is not None and target.dim() == 2:
            raise TargetError("a ledger is of one target an item: ask for one at a time")
        if asked is not None and asked.many:
            raise ConditionError("a ledger is of one condition, a dict: ask for one at a time")
        results = self._run(plan, tensors, target, asked, ledger=True)
        arrived = torch.stack([item_sum(r) for r in results["relevance"]]).sum(dim=0)
        rows = results["rows"]
        return build_ledger(rows, results["ledger"], results["start"].double(), arrived)

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

        return dot_source(self)

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

        return draw(self, path, view, depth=depth)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, by copy.deepcopy or pickle, is compiled anew from the copied model.
        return _rebuild, (self._recompile, self._weights.model, self._weights.dtype, self._weights.device)

    def __getattr__(self, name: str) -> Any:
        if name == "graph_module":
            self._captured_plan(name)
        return super().__getattr__(name)

    def _captured_plan(self, asked: str) -> Plan:
        if self._plan is None:
            raise NotCapturedError(
                f"{asked} is known once the model was captured; {type(self._weights.model).__name__} is captured at "
                "the first call: call the explainer, or give compile(example_inputs=…)\n"
                f"({self._untraceable})"
            )
        return self._plan

    def _adopt(self, plan: Plan) -> None:
        program = plan.program()
        self._weights.add(program.module)
        self._plan = plan
        self.graph_module = program.module
        if plan not in self._plans:
            self._plans.append(plan)

    def _plan_for(self, call: Call, tensors: list[Tensor]) -> Plan:
        """The plan for calls like this one; captured now where there is none."""
        for plan in self._plans:
            if plan.serves(call, self._weights.dtype_now()):
                if plan is not self._plan:
                    self._adopt(plan)
                return plan
        (recipe,) = self._recipe
        check_examples(call, tensors)
        try:
            plan = recipe.exported(self._weights.model, call, tensors, self._weights.dtype)
            self._adopt(plan)
        except CaptureError as error:
            if self._untraceable is not None:
                error.args = (f"{error}\n({self._untraceable})",)
            raise
        return plan

    def _prepare(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any
    ) -> tuple[Plan, list[Tensor], Tensor | None]:
        plan, tensors = self._plan, list(inputs)
        if plan is None or not plan.fits(inputs, named, self._weights.dtype_now()):
            call, tensors = bind(self._weights.model, inputs, named)
            plan = self._plan_for(call, tensors)
        if not torch.compiler.is_compiling():
            self._weights.refresh(self._recorded)
        check_inputs(plan.inputs, tensors, self._weights.example())
        first = tensors[0]
        if not torch.compiler.is_compiling():
            self._last = plan, [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        counted = target is not None and not torch.compiler.is_compiling()
        classes = plan.class_count(tensors) if counted else None
        return plan, tensors, check_target(target, first.shape[0], classes, first.device)

    def _split(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """The arguments of a call, with a target that follows the inputs taken from them."""
        if target is None and self._ends_with_target(inputs, named):
            *inputs, target = inputs  # type: ignore[assignment]
        return tuple(inputs), named, target

    def _ends_with_target(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether the last positional argument is one more than the inputs, and so the target."""
        required, most = self._counts
        given = len(inputs) + len(named)
        if given <= required or len(inputs) < 2:
            return False
        last = inputs[-1]
        # Several classes an item, or a list of them, could as well be an optional input.
        classes = isinstance(last, Tensor) and not last.is_floating_point() and last.dim() < 2
        return len(inputs) > most or classes or (isinstance(last, int) and not isinstance(last, bool))

    @property
    def _recorded(self) -> bool:
        """Whether an explanation made now keeps its autograd graph."""
        return self.differentiable and torch.is_grad_enabled()

    def _example(self, example_inputs: Any) -> tuple[Plan, list[Tensor], bool]:
        """The plan for example inputs, these or some like the last ones, and whether they are of half precision."""
        if example_inputs is None:
            if self._last is None:
                raise ExportError(
                    "nothing says what the inputs look like: call the explainer once before, or give example_inputs="
                )
            plan, forms = self._last
            tensors = [_filled(form, spec) for form, spec in zip(forms, plan.inputs, strict=True)]
        else:
            plan, tensors, _ = self._prepare(*_arguments(example_inputs), None)
        return plan, tensors, self._is_half(tensors)

    def _is_half(self, tensors: list[Tensor]) -> bool:
        """Whether values of half precision may come up."""
        like = self._weights.example()
        halves = (torch.float16, torch.bfloat16)
        return (like is not None and like.dtype in halves) or torch.is_autocast_enabled(tensors[0].device.type)

    def _run(
        self, plan: Plan, inputs: list[Tensor], target: Tensor | None, conditions: Conditions | None, *,
        ledger: bool = False, heatmap: bool = False, chunk: int | None = None,
    ) -> dict[str, Any]:
        count = count_rows(conditions, target)
        mixed = self._is_half(inputs)
        recorded = self._recorded
        compiled = self.backend != EAGER and count is None and not ledger and not torch.compiler.is_compiling()
        program = plan.program(
            ledger=ledger, mixed=mixed, rows=target is not None and target.dim() == 2,
            conditions=conditions.modules if conditions else (), heatmap=heatmap,
            packed=not (ledger or mixed or recorded or compiled) and can_pack(inputs),
        )
        masked: list[Tensor] = []
        if conditions is not None:
            masked = masks(conditions, program.points, plan.forward.graph, plan.shapes(inputs), inputs[0].device)
        if self._weights.add(program.module):
            self._weights.refresh(recorded)
        autocast = torch.is_autocast_enabled(inputs[0].device.type)
        run: Callable[..., Any] = Mixed(program.module).run if autocast else program.module
        if compiled:
            run = self._compiled_for(program.module, autocast)
        try:
            with torch.set_grad_enabled(recorded):
                results: dict[str, Any]
                if count is None:
                    results = {**run(*inputs, target, *(mask[0] for mask in masked))}
                else:
                    results = run_rows(run, inputs, target, masked, count, chunk)
        except RuntimeError as error:
            # Shapes that the model cannot take: say which layer, instead of which kernel.
            if not torch.compiler.is_compiling():
                forward_shapes(plan.forward, inputs)
            if compiled:
                raise_for(error, self.backend)
            raise
        return {**results, "rows": program.rows}

    def _compiled_for(self, module: fx.GraphModule, autocast: bool) -> Compiled:
        if autocast:
            raise BackendError(
                f"backend={self.backend!r} does not run under torch.autocast: convert the explainer, by .to(dtype), "
                "or compile it with backend='eager'"
            )
        return self._compiled.setdefault(id(module), Compiled(module, self.backend))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Explainer:
        # nn.Module would convert the tensors in place, and they are the model's.
        self._weights.convert(fn)
        self._weights.refresh()
        return self


class Mixed(fx.Interpreter):
    """Runs a program under autocast: the model's own nodes as they are, relevance in full precision."""

    def run_node(self, n: fx.Node) -> Any:
        if has_facts(n):
            return super().run_node(n)
        with torch.autocast(self.device, enabled=False):
            return super().run_node(n)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        self.extra_traceback = False  # an error of a rule or a start is raised as it is
        return super().run(*args, **kwargs)


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,), {}


def _filled(form: tuple[Any, ...], spec: InputSpec) -> Tensor:
    """An input of a form: noise, or numbers that an embedding has."""
    shape, dtype, device = form
    if spec.integer:
        return torch.ones(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _rebuild(
    recompile: Callable[[nn.Module], Explainer], model: nn.Module, dtype: torch.dtype | None, device: Any
) -> Explainer:
    explainer = recompile(model)
    return explainer if dtype is None and device is None else explainer.to(device=device, dtype=dtype)
