"""From a captured model to its programs: the passes, one after the other, and what they found."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture import Call, Captured, check_model, export, trace
from fxlrp.capture.symbolic import UntraceableError
from fxlrp.common.errors import CaptureError, PatternError, UnknownOperationError
from fxlrp.passes.annotate import Annotate
from fxlrp.passes.assign import Assign, check_preset, override
from fxlrp.passes.canonicalize import canonicalize
from fxlrp.passes.channel_axes import Shapes
from fxlrp.passes.emit import Program, emit
from fxlrp.passes.facts import facts
from fxlrp.passes.fold import FoldNorms
from fxlrp.passes.joins import FindJoins, Join
from fxlrp.passes.optimize import PACK_WEIGHTS, REUSE_FORWARD, SINGLE_BRANCH, optimize
from fxlrp.presets import Preset
from fxlrp.rules.rule import Rule
from fxlrp.rules.split import SplitRule
from fxlrp.rules.starts import Start
from fxlrp.runtime.inputs import InputSpec, forward_shapes, input_specs
from fxlrp.runtime.weights import dtype_of
from fxlrp.vocabulary import Kind


@dataclass(frozen=True)
class Recipe:
    """What the caller of ``compile`` asked for; its attributes are that function's parameters."""

    preset: Preset
    rules: Mapping[Any, Rule] | None = None
    split: SplitRule | None = None
    identity_skips: bool = True
    start: Start | nn.Module | None = None
    output: Any = None
    checkpoints: tuple[str, ...] = ()
    optimize: tuple[str, ...] = ()

    def check(self, model: nn.Module) -> None:
        """Raise where something asked for cannot be, whatever the graph of ``model`` turns out to be.

        Raises:
            RuleError, PatternError: a rule is none, a key means nothing, a checkpoint is no module.
        """
        check_model(model)
        check_preset(self.preset)
        for key, rule in (self.rules or {}).items():
            override(key, rule)
        modules = dict(model.named_modules())
        for name in self.checkpoints:
            if name not in modules:
                raise PatternError(f"checkpoint {name!r} is no module of this model")

    def traced(self, model: nn.Module) -> Plan:
        """The plan of a model that symbolic tracing can follow.

        Raises:
            UntraceableError: it cannot.
            UnknownOperationError: it can, but what it finds is not in the vocabulary.
        """
        return Plan(trace(model, self.output), self)

    def exported(
        self, model: nn.Module, call: Call, tensors: Sequence[Tensor], dtype: torch.dtype | None = None
    ) -> Plan:
        """The plan of a model as ``torch.export`` reads it from example inputs.

        Args:
            model: the model.
            call: how it is called.
            tensors: the example inputs.
            dtype: the floating point type to read it in, where that is not the model's own.
        """
        check_model(model)
        read = model if dtype is None else copy.deepcopy(model).to(dtype)
        captured = export(read, call, tensors, self.output)
        captured.model = model
        return Plan(captured, self, call, dtype or dtype_of(model))


def may_export(reason: CaptureError) -> bool:
    """Whether a model that was not captured symbolically may yet be captured by export."""
    return isinstance(reason, UntraceableError) or (isinstance(reason, UnknownOperationError) and reason.opaque)


@dataclass(eq=False)
class Plan:
    """A captured model with its rules assigned, and the programs that are emitted from it on demand.

    Attributes:
        captured: the graph as read.
        recipe: what was asked for.
        call: the call that it was captured for; ``None`` where it was traced symbolically.
        dtype: the floating point type that it was captured in, for export writes casts down.
        forward: the forward graph, canonical, annotated, with joins and rules.
        explained: the node where relevance starts.
        casts: whether the model itself casts values that carry signal.
        inputs: what the graph says of each input.
    """

    captured: Captured
    recipe: Recipe
    call: Call | None = None
    dtype: torch.dtype | None = None
    _programs: dict[tuple[Any, ...], Program] = field(default_factory=dict)
    _shapes: tuple[Any, Shapes] | None = None
    _classes: int | None = None

    def __post_init__(self) -> None:
        # Plain attributes, which torch.compile can follow where an explainer is compiled as a whole.
        self.forward = self._annotated()
        self.explained = self._explained()
        self.casts = self._casts()
        self.inputs = input_specs(self.forward, self.captured.shapes)

    def _annotated(self) -> fx.GraphModule:
        recipe = self.recipe
        forward = canonicalize(self.captured)
        for step in (
            Annotate(),
            FindJoins(),
            Assign(recipe.preset, recipe.rules, split=recipe.split, identity_skips=recipe.identity_skips),
            FoldNorms(),
        ):
            forward = step(forward)
        return forward

    def _explained(self) -> fx.Node:
        outputs: Any = next(node for node in self.forward.graph.nodes if node.op == "output").args[0]
        if not isinstance(outputs[0], fx.Node) or not facts(outputs[0]).signal:
            raise CaptureError("the output does not depend on the input")
        return outputs[0]

    def _casts(self) -> bool:
        cast = torch.ops.aten.to.dtype
        return any(node.target is cast and facts(node).signal for node in self.forward.graph.nodes)

    @property
    def joins(self) -> list[Join]:
        """The adds where two branches meet."""
        return [facts(node).join for node in self.forward.graph.nodes if facts(node).kind is Kind.JOIN]

    @property
    def returns(self) -> pytree.TreeSpec:
        """The structure of what the model returns."""
        return self.captured.returns

    def program(
        self, *, ledger: bool = False, mixed: bool = False, rows: bool = False, conditions: tuple[str, ...] = (),
        heatmap: bool = False, nodes: tuple[str, ...] = (), packed: bool = False, optimized: bool = True,
    ) -> Program:
        """The relevance graph, emitted when it is first asked for.

        Args:
            ledger: whether it keeps a ledger.
            mixed: whether it is for values of half or several precisions.
            rows: whether it is for many targets.
            conditions: the modules at whose output it masks relevance.
            heatmap: whether it sums relevance over channels.
            nodes: the forward nodes whose relevance it gives beside.
            packed: whether its weights may be packed for the processor.
            optimized: whether the optimiser works on it.
        """
        packed = packed and PACK_WEIGHTS in self.recipe.optimize and not self.casts
        key = (ledger, mixed or self.casts, rows, conditions, heatmap, nodes, packed, optimized)
        if key not in self._programs:
            recipe = self.recipe
            assert recipe.start is not None
            mixed = mixed or self.casts
            program = emit(
                self.forward, self.explained, recipe.start, recipe.checkpoints,
                ledger=ledger, mixed=mixed, rows=rows, conditions=conditions, heatmap=heatmap, nodes=nodes,
                signs=SINGLE_BRANCH in recipe.optimize,
                # An output of half precision is rounded more than a denominator may be.
                outputs=REUSE_FORWARD in recipe.optimize and not mixed,
            )
            # A ledger tells what each node does, so none of it is rewritten.
            names = [name for name in recipe.optimize if packed or name != PACK_WEIGHTS]
            program.module = optimize(program.module, () if ledger or not optimized else names)
            self._programs[key] = program
        return self._programs[key]

    def serves(self, call: Call, dtype: torch.dtype | None) -> bool:
        """Whether this graph was captured for calls like ``call`` of a model in ``dtype``."""
        if self.call is not None:
            return self.call.key == call.key and self.dtype == dtype
        names = tuple(spec.name for spec in self.inputs)
        return call.plain and call.names == names and all(map(InputSpec.takes, self.inputs, call.floating))

    def fits(self, inputs: Sequence[Any], named: Mapping[str, Any], dtype: torch.dtype | None) -> bool:
        """Whether a call is plainly one that this graph serves: one tensor for each input, in order."""
        if named or len(inputs) != len(self.inputs):
            return False
        if self.call is not None and (not self.call.plain or self.dtype != dtype):
            return False
        return all(
            isinstance(value, Tensor) and spec.takes(value.is_floating_point())
            for spec, value in zip(self.inputs, inputs, strict=True)
        )

    def shapes(self, inputs: Sequence[Tensor]) -> Shapes:
        """The shape of every forward value for ``inputs``; those that were last asked for are kept.

        Raises:
            InputError: the model cannot take inputs of these shapes.
        """
        key = tuple(tensor.shape for tensor in inputs)
        if self._shapes is None or self._shapes[0] != key:
            self._shapes = key, forward_shapes(self.forward, inputs)
        return self._shapes[1]

    def class_count(self, inputs: Sequence[Tensor]) -> int | None:
        """How many classes the output has, ``None`` where it is not (batch, classes)."""
        if self._classes is None:
            shape = self.shapes(inputs)[self.explained]
            self._classes = shape[1] if len(shape) == 2 else -1
        return self._classes if self._classes >= 0 else None
