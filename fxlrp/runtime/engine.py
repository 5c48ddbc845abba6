"""The engine: a model, what was asked for, and the programs that answer calls."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxlrp.capture import Call, OneBatchError, Snapshot, bind, input_counts, unwrapped
from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import CaptureError, ExportError, FxlrpError, NotCapturedError, PropagationError
from fxlrp.common.progress import stage, watched
from fxlrp.passes.optimize import can_pack
from fxlrp.passes.request import Program, Request, Results
from fxlrp.rules.starts import OF_CALLER
from fxlrp.runtime.backends import Eager
from fxlrp.runtime.captures import CapturedModel
from fxlrp.runtime.finite import check_finite
from fxlrp.runtime.inputs import (
    LISTS,
    arguments_of,
    check_examples,
    check_inputs,
    check_kinds,
    forward_shapes,
    holds_lists,
)
from fxlrp.runtime.masks import count_slices, masks, read_conditions
from fxlrp.runtime.plan import MOST_PROGRAMS, Plan, exported, may_export, traced
from fxlrp.runtime.prepared import Form, Prepared, Seen
from fxlrp.runtime.recipe import Recipe
from fxlrp.runtime.slices import run_slices
from fxlrp.runtime.targets import check_against, check_target
from fxlrp.runtime.verify import DifferentFunctionError, Verifier
from fxlrp.runtime.weights import Weights

MOST_PLANS = 8
"""How many captured graphs of a model are kept: one per kind of call that symbolic tracing does not serve."""


class Engine:
    """Captures a model, and explains calls of it.

    It is captured symbolically at once where that is possible, and else from examples, now or at the first call.

    Args:
        model: the model, in eval mode. It is not changed.
        recipe: what was asked for.
        example_inputs: what the model takes; ``None``: nothing is known yet.

    Attributes:
        plan: that of the last call; ``None`` where the model is captured at the first call.
        last: what the last call looked like; ``None`` before the first.

    Raises:
        TrainingModeError, CaptureError, PatternError: the model cannot be explained as asked.
    """

    def __init__(
        self, model: nn.Module | ExportedProgram | CapturedModel, recipe: Recipe, example_inputs: Any = None
    ) -> None:
        self.captures = model if isinstance(model, CapturedModel) else CapturedModel(model, shared=False)
        self._given = self.captures.given
        model = unwrapped(self._given)
        recipe.check(model)
        self.recipe = recipe
        self.weights = Weights(model)
        self.plan: Plan | None = None
        self.last: Seen | None = None
        self._current_program: fx.GraphModule | None = None
        self._plans: list[Plan] = []
        self._untraceable: CaptureError | None = None
        self._may_differ = False  # whether a comparison failed: then no graph is read for single sizes
        self._eager = Eager()
        self._backend = recipe.new_backend()
        self._verifier = Verifier(model, self.weights, recipe.output, recipe.verify)
        self._lock = threading.RLock()
        self._trace()
        if example_inputs is not None:
            args, kwargs = arguments_of(example_inputs)
            self._plan_for(*bind(model, args, kwargs, recipe.items))

    @property
    def model(self) -> nn.Module:
        """The model that is explained."""
        return self.weights.model

    @property
    def input_counts(self) -> tuple[float, float]:
        """How many inputs the model cannot do without, and how many it takes; of one item none is a target."""
        least, most = input_counts(self.model)
        return (most if self.recipe.items.whole else least), most

    def parameter(self, place: int) -> str:
        """The name of what ``forward()`` takes at a place."""
        return (*inspect.signature(self.model.forward).parameters, *[""] * (place + 1))[place]

    @property
    def backend_name(self) -> str:
        """What runs explanations: the backend, by name."""
        return self._backend.name

    @property
    def current_program(self) -> fx.GraphModule | None:
        """The program of the plan in use, for a call without wishes; ``None`` where there is no plan yet."""
        return self._current_program

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every forward value in the last call, by the name of its node; empty before the first."""
        if self.last is None:
            return {}
        plan, forms = self.last
        shapes = plan.shapes([form.empty() for form in forms]).items()
        return {node.name: tuple(shape) for node, shape in shapes if isinstance(shape, torch.Size)}

    @property
    def recorded(self) -> bool:
        """Whether an explanation made now keeps its autograd graph."""
        return self.recipe.differentiable and torch.is_grad_enabled()

    def captured_plan(self, asked: str) -> Plan:
        """The plan in use.

        Raises:
            NotCapturedError: there is none yet; the message names what was ``asked``.
        """
        if self.plan is None:
            raise NotCapturedError(
                f"{asked} is known once the model was captured; {type(self.model).__name__} is captured at "
                "the first call: call the explainer, or give compile(example_inputs=…)\n"
                f"({self._untraceable})"
            )
        return self.plan

    def prepare(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any], target: Any = None, conditions: Any = None,
        against: Any = None,
    ) -> Prepared:  # fmt: skip
        """Check a call, before any work is done.

        Args:
            inputs: what the model takes, by position.
            named: the same, by name.
            target: the classes to explain, as :func:`~fxlrp.runtime.targets.check_target` takes them.
            conditions: as :func:`~fxlrp.runtime.masks.read_conditions` takes them.
            against: the classes to explain the target against, as
                :func:`~fxlrp.runtime.targets.check_against` takes them.

        Raises:
            InputError, TargetError, ConditionError: they do not fit the model.
            CaptureError: this first call shows that the model cannot be captured.
        """
        if is_compiling():
            plan, tensors = self.captured_plan("an explainer that is compiled"), list(inputs)
            check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
        else:
            check_kinds((inputs, dict(named)))
            with self._lock:
                self._follow()
                plan, tensors = self._plan_of(inputs, named)
        first = tensors[0]
        classes = None
        if not (target is None and against is None) and not is_compiling():
            classes = plan.class_count(tensors)
        count = 0 if target is None and against is None else plan.starts(tensors)
        wanted = check_target(target, count, classes, first.device)
        rivals = None if against is None else check_against(against, wanted, count, classes, first.device)
        return Prepared(plan, tensors, wanted, rivals, read_conditions(conditions), self._is_half(first))

    def _plan_of(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Plan, list[Tensor]]:
        """The plan that serves a call, verified for it, and the tensors that it takes; all checked."""
        plan, tensors = self.plan, list(inputs)
        if plan is None or not plan.fits(inputs, named, self.weights.dtype_now()):
            call, tensors = bind(self.model, inputs, dict(named), self.recipe.items)
            plan = self._plan_for(call, tensors)
        self.weights.refresh(self.recorded)
        check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
        autocast = torch.is_autocast_enabled(tensors[0].device.type)
        try:
            output = self._verifier.check(plan, tensors, autocast)
        except DifferentFunctionError as reason:
            call, _ = bind(self.model, inputs, dict(named), self.recipe.items)
            if plan.captured.fixed or (plan.captured.way == "export" and not self._may_fix(call, tensors)):
                raise
            self._discard(plan)
            if plan.captured.way == "export":  # a number that was made of a size may have been kept: read for these
                try:
                    self._use(exported(self.captures, self.recipe, call, tensors, self.weights.dtype, fixed=True))
                except CaptureError:
                    raise reason from None
            else:  # symbolic tracing took a way through forward() that the model does not take: torch.export takes it
                self._untraceable = reason
            return self._plan_of(inputs, named)
        except CaptureError:
            self._may_differ = True
            raise
        if output is not None and plan.learn_start(output):
            self._drop_programs(plan, most=0)
            self._use(plan)
        self.last = Seen(plan, [Form.of(tensor) for tensor in tensors])
        return plan, tensors

    def program(self, prepared: Prepared, request: Request, *, packed: bool = True) -> Program:
        """The program for a request, its weights as those of the model are now.

        Args:
            prepared: the call.
            request: what it wants.
            packed: whether its weights may be laid out for this processor.
        """
        fit = packed and not (prepared.half or self.recorded) and can_pack(prepared.inputs)
        wanted = replace(
            request,
            targets=prepared.targets,
            against=prepared.against is not None,
            conditions=prepared.conditions.modules if prepared.conditions else (),
            precision="mixed" if prepared.half else "uniform",
        )
        with self._locked():
            program = prepared.plan.program(prepared.plan.fitted(wanted, packed=fit))
            if self.weights.add(program.module):
                self._drop_programs(prepared.plan)
                self.weights.refresh(self.recorded)
        return program

    def run(self, prepared: Prepared, request: Request, chunk: int | None = None) -> Results:
        """Run the program of a request.

        Args:
            prepared: the call.
            request: what it wants.
            chunk: how many targets or conditions to explain at once; ``None``: all.

        Raises:
            InputError: the model cannot take inputs of these shapes; the failing layer is named.
            BackendError: the backend cannot run this.
            NonFiniteError: the output is NaN or infinite, or the relevance, other than for a ledger.
            PropagationError: the model runs, but relevance cannot be computed.
            RuleError: a rule does what cannot be done for several targets at once.
        """
        plan, inputs, target, asked = prepared.plan, prepared.inputs, prepared.target, prepared.conditions
        count = count_slices(asked, target)
        # Compiled code is of a single explanation of the batch, of which nothing is watched.
        single = count is None and not request.watched and not is_compiling()
        backend = self._backend if single else self._eager
        program = self.program(prepared, request, packed=not backend.compiles)
        kept: list[Tensor] = []
        if asked is not None:
            kept = masks(asked, program.points, plan.forward.graph, plan.shapes(inputs), inputs[0].device)
        run = backend.runner(program.module, autocast=prepared.autocast)
        try:
            with torch.set_grad_enabled(self.recorded):
                if count is None:
                    results = Results(**run(*inputs, target, *prepared.rivals, *(mask[0] for mask in kept)))
                else:
                    axes = plan.slice_axes(inputs)
                    results = run_slices(run, inputs, target, kept, count, axes, chunk, prepared.rivals)
        except FxlrpError:
            raise
        except Exception as error:
            if is_compiling() or isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
            if hasattr(error, OF_CALLER):
                raise
            # Shapes that the model cannot take: say which layer, instead of which kernel.
            forward_shapes(plan.forward, inputs)
            if isinstance(error, RuntimeError):
                backend.raise_for(error)
            raise PropagationError(
                f"{type(self.model).__name__} runs on this input, but its relevance cannot be computed: {error}"
            ) from error
        if not is_compiling():
            check_finite(results if not request.ledger else results._replace(relevance=[]))  # a ledger shows where
        return results

    def example(self, example_inputs: Any = None) -> Prepared:
        """A call with example inputs, or with inputs like those of the last call.

        Raises:
            ExportError: none are given, and there was no call.
            InputError: an example does not fit the model.
        """
        if example_inputs is not None:
            return self.prepare(*arguments_of(example_inputs))
        if self.last is None:
            raise ExportError(
                "nothing says what the inputs look like: call the explainer once before, or give example_inputs="
            )
        plan, forms = self.last
        tensors = [form.filled(spec) for form, spec in zip(forms, plan.inputs, strict=True)]
        return Prepared(plan, tensors, None, None, None, self._is_half(tensors[0]))

    def _is_half(self, first: Tensor) -> bool:
        """Whether values of half precision may come up."""
        like = self.weights.example()
        halves = (torch.float16, torch.bfloat16)
        return (like is not None and like.dtype in halves) or torch.is_autocast_enabled(first.device.type)

    def _locked(self) -> AbstractContextManager[Any]:
        """One thread at a time captures and emits; torch.compile, which follows this code, has no locks."""
        return nullcontext() if is_compiling() else self._lock

    def _trace(self) -> None:
        """Capture the model symbolically, where that is possible."""
        try:
            with watched(f"fxlrp reads {type(self.model).__name__}"):
                stage("its code is followed symbolically")
                self._use(traced(self.captures, self.recipe))
        except CaptureError as reason:
            if not may_export(reason, self.model):
                raise
            self._untraceable = reason
        self._snapshot = Snapshot(self._given)

    def _follow(self) -> None:
        """Capture the model anew where it was changed in a way that its graph does not follow by itself.

        Raises:
            TrainingModeError, CaptureError: what it is now cannot be explained.
        """
        change = self._snapshot.change() or "".join(plan.captured.changed_number() for plan in self._plans)
        if not change:
            return
        try:
            self.captures.forget()
            self.weights.model = unwrapped(self._given)
            self.recipe.check(self.model)
            for plan in list(self._plans):
                self._discard(plan)
            self._untraceable, self.last, self._may_differ = None, None, False
            self._verifier = Verifier(self.model, self.weights, self.recipe.output, self.recipe.verify)
            self._trace()
        except FxlrpError as error:
            note = f"{change} was changed since the model was compiled, by forward() itself or from outside"
            error.args = (f"{error}\n({note}; compile the model again if that was meant)",)
            raise

    def _use(self, plan: Plan) -> Plan:
        program = plan.plain.module
        self.weights.add(program)
        self.plan, self._current_program = plan, program
        if plan not in self._plans:
            self._plans.append(plan)
        for old in self._plans[:-MOST_PLANS]:
            if old is not plan:
                self._discard(old)
        return plan

    def _discard(self, plan: Plan) -> None:
        """Keep nothing of a plan."""
        self._plans.remove(plan)
        if self.plan is plan:
            self.plan = self._current_program = None
        self._drop_programs(plan, most=0)

    def _drop_programs(self, plan: Plan, most: int = MOST_PROGRAMS) -> None:
        """Keep at most so many programs of a plan, and nothing of the others."""
        for program in plan.drop_programs(most):
            self.weights.forget(program.module)
            self._backend.forget(program.module)

    def _exported(self, call: Call, tensors: list[Tensor]) -> Plan:
        """The plan as torch.export reads the model; where sizes cannot stay free, for these alone."""
        try:
            return exported(self.captures, self.recipe, call, tensors, self.weights.dtype)
        except OneBatchError as reason:
            if not self._may_fix(call, tensors):
                raise
            plan = exported(self.captures, self.recipe, call, tensors, self.weights.dtype, fixed=True)
            try:
                self._verifier.check(plan, tensors, torch.is_autocast_enabled(tensors[0].device.type))
            except CaptureError as error:
                self._may_differ = True
                error.args = (f"{error}\n({reason})",)
                raise
            return plan

    def _tell_anew(self, call: Call, tensors: list[Tensor]) -> None:
        """Say that other sizes took another capture."""
        sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(call.names, tensors, strict=True))
        warnings.warn(
            f"{type(self.model).__name__} was captured anew for sizes {sizes}, which an earlier capture did not leave "
            f"free; the last {MOST_PLANS} captures are kept",
            stacklevel=2,
        )

    def _may_fix(self, call: Call, tensors: list[Tensor]) -> bool:
        """Whether the model may be read for the sizes of these inputs alone.

        Of one item nothing shows whether another batch changes the function: several must have been explained before,
        each as if it were alone.
        """
        shown = call.items.whole or call.count(tensors) > 1 or any(plan.captured.fixed for plan in self._plans)
        return shown and not self._may_differ

    def _plan_for(self, call: Call, tensors: list[Tensor]) -> Plan:
        """The plan for calls like this one; captured now where there is none."""
        served = [plan for plan in self._plans if plan.serves(call, self.weights.dtype_now())]
        for plan in served:
            if plan.takes(tensors):
                return plan if plan is self.plan else self._use(plan)
        check_examples(call, tensors)
        reads = self.captures.reads
        try:
            with watched(f"fxlrp reads {type(self.model).__name__}"):
                plan = self._use(self._exported(call, tensors))
            # Where forward() asks of integers, it may be their values and not their sizes that are others.
            if served and self.captures.reads > reads and all(old.captured.questions is None for old in served):
                self._tell_anew(call, tensors)
            return plan
        except CaptureError as error:
            for plan in served:  # captured for other sizes: was it the sizes?
                check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
            notes = [f"({self._untraceable})"] if self._untraceable is not None else []
            if holds_lists(call):
                notes.append(LISTS)
            error.args = ("\n".join([str(error), *notes]),)
            raise
