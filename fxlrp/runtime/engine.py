"""The engine: a model, what was asked for, and the programs that answer calls."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxlrp.capture import input_counts, unwrapped
from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import ExportError, FxlrpError, NotCapturedError, PropagationError
from fxlrp.passes.optimize import can_pack
from fxlrp.passes.request import Program, Request, Results
from fxlrp.rules.starts import OF_CALLER
from fxlrp.runtime.backends import Eager
from fxlrp.runtime.captures import CapturedModel
from fxlrp.runtime.finite import check_finite
from fxlrp.runtime.inputs import arguments_of, check_inputs, check_kinds, forward_shapes
from fxlrp.runtime.masks import count_slices, masks, read_conditions
from fxlrp.runtime.plan import Plan
from fxlrp.runtime.plans import Plans
from fxlrp.runtime.prepared import Form, Prepared, Seen
from fxlrp.runtime.recipe import MODEL, Recipe
from fxlrp.runtime.slices import run_slices
from fxlrp.runtime.targets import check_against, check_predicted, check_target
from fxlrp.runtime.verify import check_program
from fxlrp.runtime.weights import Weights


class Engine:
    """Captures a model, and explains calls of it.

    It is captured symbolically at once where that is possible, and else from examples, now or at the first call.

    Args:
        model: the model, in eval mode. It is not changed.
        recipe: what was asked for.
        example_inputs: what the model takes; ``None``: nothing is known yet.

    Attributes:
        recipe: what was asked for.
        weights: those of the programs, and the model that they are of.

    Raises:
        TrainingModeError, CaptureError, PatternError: the model cannot be explained as asked.
    """

    def __init__(
        self, model: nn.Module | ExportedProgram | CapturedModel, recipe: Recipe, example_inputs: Any = None
    ) -> None:
        captures = model if isinstance(model, CapturedModel) else CapturedModel(model, shared=False)
        model = unwrapped(captures.given)
        recipe.check(model)
        self.recipe = recipe
        self.weights = Weights(model)
        self._last: Seen | None = None
        self._eager = Eager()
        self._backend = recipe.new_backend()
        self._lock = threading.RLock()
        self._plans = Plans(captures, recipe, self.weights, self._backend)
        if example_inputs is not None:
            self._plans.learn(arguments_of(example_inputs))

    @property
    def model(self) -> nn.Module:
        """The model that is explained."""
        return self.weights.model

    @property
    def plan(self) -> Plan | None:
        """That of the last call; ``None`` where the model is captured at the first call."""
        return self._plans.current

    @property
    def last(self) -> Seen | None:
        """What the last call looked like; ``None`` before the first, and where the model was captured anew since."""
        return self._last if self._last and self._last.plan in self._plans else None

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
        return self._plans.program

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
                f"({self._plans.untraceable})"
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
            plan, tensors, returned = self.captured_plan("an explainer that is compiled"), list(inputs), None
            check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
        else:
            check_kinds((inputs, dict(named)))
            with self._lock:
                plan, tensors, returned = self._plans.verified(inputs, named, self.recorded)
                self._last = Seen(plan, [Form.of(tensor) for tensor in tensors])
        first = tensors[0]
        classes = None
        if not (target is None and against is None) and not is_compiling():
            classes = plan.class_count(tensors)
        count = 0 if target is None and against is None else plan.starts(tensors)
        wanted = check_target(target, count, classes, first.device)
        rivals = None if against is None else check_against(against, wanted, count, classes, first.device)
        return Prepared(plan, tensors, wanted, rivals, read_conditions(conditions), self._is_half(first), returned)

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
            precision=self._precision(prepared),
        )
        with self._locked():
            program = prepared.plan.program(prepared.plan.fitted(wanted, packed=fit))
            if self.weights.add(program.module):
                self._plans.drop_programs(prepared.plan)
                self.weights.refresh(self.recorded)
        return program

    def _precision(self, prepared: Prepared) -> Literal["uniform", "mixed", "products"]:
        """See :class:`~fxlrp.passes.request.Request`; products in bfloat16 are for models that are in it."""
        if not prepared.half:
            return "uniform"
        narrow = self.recipe.precision == MODEL and self.weights.dtype_now() is torch.bfloat16
        return "products" if narrow else "mixed"

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
            TargetError: the predicted class is explained, and it is one of the rivals.
        """
        plan, inputs, target, asked = prepared.plan, prepared.inputs, prepared.target, prepared.conditions
        count = count_slices(asked, target)
        # Compiled code is of a single explanation of the batch, of which nothing is watched.
        single = count is None and not request.watched and not is_compiling()
        backend = self._backend if single else self._eager
        program = self.program(prepared, request, packed=not backend.compiles)
        kept: list[Tensor] = []
        if asked is not None:
            shapes = plan.shapes(inputs, program.forward)
            kept = masks(asked, program.points, program.forward.graph, shapes, inputs[0].device)
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
            if prepared.returned is not None and count is None:
                check_program(results.output, prepared.returned, type(self.model).__name__)
            check_finite(results if not request.ledger else results._replace(relevance=[]))  # a ledger shows where
            if target is None and prepared.against is not None:
                check_predicted(results.target, prepared.against)
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
