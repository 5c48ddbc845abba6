"""The plans of one model: which captured graph serves a call, and when the model is captured anew."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import Call, OneBatchError, Snapshot, bind, check_loaded, unwrapped
from fxlrp.common.errors import CaptureError, FxlrpError
from fxlrp.common.progress import stage, watched
from fxlrp.runtime.backends import Backend
from fxlrp.runtime.captures import CapturedModel
from fxlrp.runtime.inputs import LISTS, check_examples, check_inputs, holds_lists
from fxlrp.runtime.plan import MOST_PROGRAMS, Plan, exported, may_export, traced
from fxlrp.runtime.recipe import Recipe
from fxlrp.runtime.verify import DifferentFunctionError, Verifier
from fxlrp.runtime.weights import Weights

MOST_PLANS = 8
"""How many captured graphs of a model are kept: one per kind of call that symbolic tracing does not serve."""


class Plans:
    """Captures a model symbolically at once where that is possible, and else from what it is called with.

    Args:
        captures: reads the model.
        recipe: what was asked for.
        weights: those of the programs.
        backend: what runs them.

    Attributes:
        current: the plan of the last call; ``None`` where the model is captured at the first call.
        program: that of the current plan, for a call without wishes; ``None`` where there is no plan yet.
        untraceable: why symbolic tracing does not serve; ``None`` where it does.

    Raises:
        TrainingModeError, CaptureError, PatternError: the model cannot be explained as asked.
    """

    def __init__(self, captures: CapturedModel, recipe: Recipe, weights: Weights, backend: Backend) -> None:
        self.captures, self.recipe, self.weights, self.backend = captures, recipe, weights, backend
        self.current: Plan | None = None
        self.program: fx.GraphModule | None = None
        self.untraceable: CaptureError | None = None
        self._plans: list[Plan] = []
        self._may_differ = False  # whether a comparison failed: then no graph is read for single sizes
        self._alone = False  # whether a comparison showed that items of a batch do not depend on each other
        self._trace()

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Plan]:
        return iter(self._plans)

    def verified(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any], recorded: bool
    ) -> tuple[Plan, list[Tensor], list[Any] | None]:
        """The plan that serves a call, verified for it, and the tensors that it takes; all checked.

        Third comes what the model itself returns, flattened, where it was run to be compared.

        Args:
            inputs: what the model takes, by position.
            named: the same, by name.
            recorded: whether the explanation keeps its autograd graph.
        """
        self._follow()
        plan, tensors = self.current, list(inputs)
        if plan is None or not plan.fits(inputs, named, self.weights.dtype_now()):
            call, tensors = self._bound(inputs, named)
            plan = self._for_call(call, tensors)
        self.weights.refresh(recorded)
        check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
        try:
            outputs = self._compare(plan, tensors)
        except DifferentFunctionError as reason:
            call, _ = self._bound(inputs, named)
            self._read_otherwise(plan, call, tensors, reason)
            return self.verified(inputs, named, recorded)
        except CaptureError:
            self._may_differ = True
            raise
        if outputs is not None and plan.learn(outputs[0]):
            self.drop_programs(plan, most=0)
            self._use(plan)
        return plan, tensors, None if outputs is None else outputs[1:]

    def learn(self, example_inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> None:
        """Capture the model for calls like an example: positional arguments, and those by name."""
        self._for_call(*self._bound(*example_inputs))

    def drop_programs(self, plan: Plan, most: int = MOST_PROGRAMS) -> None:
        """Keep at most so many programs of a plan, and nothing of the others."""
        for program in plan.drop_programs(most):
            self.weights.forget(program.module)
            self.backend.forget(program.module)

    def _bound(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Call, list[Tensor]]:
        return bind(self.weights.model, inputs, dict(named), self.recipe.items)

    def _compare(self, plan: Plan, tensors: list[Tensor]) -> list[Any] | None:
        """The outputs of the model, where it was run to be compared with the plan: the explained one, and all."""
        outputs = self._verifier.check(plan, tensors, torch.is_autocast_enabled(tensors[0].device.type))
        if outputs is not None:
            self._settle()
        self._alone = self._alone or (outputs is not None and plan.count(tensors) > 1)
        return outputs

    def _trace(self) -> None:
        """Capture the model symbolically, where that is possible."""
        model = self.weights.model
        self._verifier = Verifier(model, self.weights, self.recipe.output, self.recipe.verify)
        try:
            with watched(f"fxlrp reads {type(model).__name__}"):
                stage("its code is followed symbolically")
                self._use(traced(self.captures, self.recipe))
        except CaptureError as reason:
            if not may_export(reason, model):
                raise
            self.untraceable = reason
        self._snapshot = Snapshot(self.captures.given)

    def _settle(self) -> None:
        """Take what forward() itself wrote to a class, such as a log, for the model as it is: no double has classes."""
        if self._snapshot.change():
            self._snapshot = Snapshot(self.captures.given)

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
            self.weights.model = unwrapped(self.captures.given)
            self.recipe.check(self.weights.model)
            for plan in list(self._plans):
                self._discard(plan)
            self.untraceable, self._may_differ, self._alone = None, False, False
            self._trace()
        except FxlrpError as error:
            note = f"{change} was changed since the model was compiled, by forward() itself or from outside"
            error.args = (f"{error}\n({note}; compile the model again if that was meant)",)
            raise

    def _read_otherwise(self, plan: Plan, call: Call, tensors: list[Tensor], reason: DifferentFunctionError) -> None:
        """Put another graph in place of one that is not the model.

        Raises:
            DifferentFunctionError: there is no other.
        """
        exporting = plan.captured.way == "export"
        if plan.captured.fixed or (exporting and not self._may_fix(plan, tensors)):
            raise reason
        self._discard(plan)
        if not exporting:  # symbolic tracing took a way through forward() that the model does not take
            self.untraceable = reason
            return
        try:  # a number that was made of a size may have been kept: read for these
            self._use(exported(self.captures, self.recipe, call, tensors, self.weights.dtype, fixed=True))
        except CaptureError:
            raise reason from None

    def _for_call(self, call: Call, tensors: list[Tensor]) -> Plan:
        """The plan for calls like this one; captured now where there is none."""
        served = [plan for plan in self._plans if plan.serves(call, self.weights.dtype_now())]
        for plan in served:
            if plan.takes(tensors):
                return plan if plan is self.current else self._use(plan)
        check_loaded(self.weights.model)
        check_examples(call, tensors)
        reads = self.captures.reads
        try:
            with watched(f"fxlrp reads {type(self.weights.model).__name__}"):
                plan = self._use(self._exported(call, tensors))
            self._settle()
            # Where forward() asks of integers, it may be their values and not their sizes that are others.
            if served and self.captures.reads > reads and all(old.captured.questions is None for old in served):
                self._tell_anew(call, tensors)
            return plan
        except CaptureError as error:
            for plan in served:  # captured for other sizes: was it the sizes?
                check_inputs(plan.inputs, tensors, self.weights.example(), self.recipe.items)
            notes = [f"({self.untraceable})"] if self.untraceable is not None else []
            if holds_lists(call):
                notes.append(LISTS)
            error.args = ("\n".join([str(error), *notes]),)
            raise

    def _exported(self, call: Call, tensors: list[Tensor]) -> Plan:
        """The plan as torch.export reads the model; where sizes cannot stay free, for these alone."""
        try:
            return exported(self.captures, self.recipe, call, tensors, self.weights.dtype)
        except OneBatchError as reason:
            if self._may_differ:
                raise
            plan = exported(self.captures, self.recipe, call, tensors, self.weights.dtype, fixed=True)
            try:
                self._compare(plan, tensors)
            except CaptureError as error:
                self._may_differ = True
                error.args = (f"{error}\n({reason})",)
                raise
            if not self._may_fix(plan, tensors):
                raise
            return plan

    def _may_fix(self, plan: Plan, tensors: list[Tensor]) -> bool:
        """Whether the model may be read for the sizes of these inputs alone.

        What is read for one item alone says nothing of another batch. That items do not depend on each other must have
        been shown by a comparison, of several items at an earlier call or of copies of this one.
        """
        if self._may_differ:
            return False
        several = plan.items.whole or plan.count(tensors) > 1
        return several or self._alone or self._verifier.is_alone(plan, tensors)

    def _tell_anew(self, call: Call, tensors: list[Tensor]) -> None:
        """Say that other sizes took another capture."""
        sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(call.names, tensors, strict=True))
        warnings.warn(
            f"{type(self.weights.model).__name__} was captured anew for sizes {sizes}, which an earlier capture "
            f"did not leave free; the last {MOST_PLANS} captures are kept",
            stacklevel=2,
        )

    def _use(self, plan: Plan) -> Plan:
        program = plan.plain.module
        self.weights.add(program)
        self.current, self.program = plan, program
        if plan not in self._plans:
            self._plans.append(plan)
        for old in self._plans[:-MOST_PLANS]:
            if old is not plan:
                self._discard(old)
        return plan

    def _discard(self, plan: Plan) -> None:
        """Keep nothing of a plan."""
        self._plans.remove(plan)
        if self.current is plan:
            self.current = self.program = None
        self.drop_programs(plan, most=0)
