"""The explainer: inputs in, relevance out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture import Call, bind, input_counts
from fxlrp.common.errors import (
    BackendError,
    CaptureError,
    ConditionError,
    InputError,
    NotCapturedError,
    TargetError,
)
from fxlrp.inspection import Inspection
from fxlrp.interop.captum import Attribution
from fxlrp.passes.facts import has_facts
from fxlrp.passes.optimize import can_pack
from fxlrp.portability import Portability
from fxlrp.results.explanation import Explanation
from fxlrp.results.ledger import Ledger, build_ledger
from fxlrp.runtime.backends import EAGER, Compiled, raise_for
from fxlrp.runtime.inputs import arguments_of, check_examples, check_inputs, check_target, forward_shapes
from fxlrp.runtime.masks import Conditions, count_rows, masks, read_conditions
from fxlrp.runtime.plan import Plan, Recipe, may_export
from fxlrp.runtime.slices import check_chunk, run_rows
from fxlrp.runtime.timing import Spent, Step, measure
from fxlrp.runtime.weights import Weights
from fxlrp.steps.batch_axis import item_sum


class Explainer(Attribution, Inspection, Portability, nn.Module):
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
            args, kwargs = arguments_of(example_inputs)
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
            pictures=tensors[0] if len(tensors) == 1 and _are_pictures(tensors[0]) else None,
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

    def relevance_of(
        self, *inputs: Any, nodes: Sequence[str], target: Any = None, **named: Any
    ) -> dict[str, Tensor]:
        """The relevance of values inside the model, by the name of the node that makes each.

        The names are those of ``summary()``, ``ledger()`` and ``joins``; other arguments are those of an explanation.

        Args:
            *inputs: what the model takes.
            nodes: names of nodes.
            target: the class to explain, as for an explanation, one an item.
            **named: what the model takes, by name.

        Returns:
            In the shape of each value.

        Raises:
            PatternError: no relevance reaches a node of a name that is given.
            InputError, TargetError, CaptureError: as for an explanation.
        """
        plan, tensors, target = self._prepare(*self._split(inputs, named, target))
        _check_one_target(target, "the relevance of nodes")
        found: dict[str, Tensor] = self._run(plan, tensors, target, None, nodes=tuple(nodes)).get("nodes", {})
        return found

    def ledger(self, *inputs: Any, target: Any = None, conditions: Any = None, **named: Any) -> Ledger:
        """What every node received, handed on and absorbed, for the same arguments as an explanation.

        What a condition took away has a row of its own, and the reason ``"condition"``.

        Raises:
            InputError, TargetError, ConditionError, PatternError, CaptureError: as for an explanation; a
                ledger is of one target an item, and of one condition.
        """
        plan, tensors, target = self._prepare(*self._split(inputs, named, target))
        asked = read_conditions(conditions)
        _check_one_target(target, "a ledger")
        if asked is not None and asked.many:
            raise ConditionError("a ledger is of one condition, a dict: ask for one at a time")
        results = self._run(plan, tensors, target, asked, ledger=True)
        arrived = torch.stack([item_sum(r) for r in results["relevance"]]).sum(dim=0)
        rows = results["rows"]
        return build_ledger(rows, results["ledger"], results["start"].double(), arrived)

    def _measured(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any, *, optimized: bool, rounds: int
    ) -> tuple[Plan, dict[Step, Spent]]:
        plan, tensors, target = self._prepare(*self._split(inputs, named, target))
        _check_one_target(target, "a profile")
        if torch.is_autocast_enabled(tensors[0].device.type):
            raise InputError("steps are not timed under torch.autocast: convert the explainer, by .to(dtype)")
        mixed = self._is_half(tensors)
        program = plan.program(mixed=mixed, packed=optimized and not mixed and can_pack(tensors), optimized=optimized)
        if self._weights.add(program.module):
            self._weights.refresh(False)
        return plan, measure(program.module, (*tensors, target), rounds)

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

    def _is_half(self, tensors: list[Tensor]) -> bool:
        """Whether values of half precision may come up."""
        like = self._weights.example()
        halves = (torch.float16, torch.bfloat16)
        return (like is not None and like.dtype in halves) or torch.is_autocast_enabled(tensors[0].device.type)

    def _run(
        self, plan: Plan, inputs: list[Tensor], target: Tensor | None, conditions: Conditions | None, *,
        ledger: bool = False, heatmap: bool = False, nodes: tuple[str, ...] = (), chunk: int | None = None,
    ) -> dict[str, Any]:
        count = count_rows(conditions, target)
        mixed = self._is_half(inputs)
        recorded = self._recorded
        looked_at = ledger or bool(nodes)
        compiled = self.backend != EAGER and count is None and not looked_at and not torch.compiler.is_compiling()
        program = plan.program(
            ledger=ledger, mixed=mixed, rows=target is not None and target.dim() == 2,
            conditions=conditions.modules if conditions else (), heatmap=heatmap, nodes=nodes,
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


def _check_one_target(target: Tensor | None, what: str) -> None:
    if target is not None and target.dim() == 2:
        raise TargetError(f"{what} is of one target an item: ask for one at a time")


def _are_pictures(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[1] in (1, 3) and value.is_floating_point()


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


def _rebuild(
    recompile: Callable[[nn.Module], Explainer], model: nn.Module, dtype: torch.dtype | None, device: Any
) -> Explainer:
    explainer = recompile(model)
    return explainer if dtype is None and device is None else explainer.to(device=device, dtype=dtype)
