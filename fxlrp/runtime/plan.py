"""From a captured model to its programs: the passes, one after the other, and what they found."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture import Call, Captured
from fxlrp.capture.captured import has_hooks
from fxlrp.capture.symbolic import UntraceableError
from fxlrp.common.errors import CaptureError, UnknownOperationError
from fxlrp.common.items import Items
from fxlrp.common.progress import stage
from fxlrp.passes.annotate import Annotate
from fxlrp.passes.assign import Assign
from fxlrp.passes.canonicalize import canonicalize
from fxlrp.passes.channel_axes import Shapes
from fxlrp.passes.depth import FindDepth
from fxlrp.passes.emit import emit
from fxlrp.passes.facts import facts
from fxlrp.passes.fitting_start import fitting_start, suited_start
from fxlrp.passes.fold import FoldNorms
from fxlrp.passes.joins import FindJoins, Join
from fxlrp.passes.lookups import comes_from_input
from fxlrp.passes.optimize import EMITTED, PACK_WEIGHTS, optimize
from fxlrp.passes.optimize.recompute import Recompute, kept_values
from fxlrp.passes.positions import ONE_ITEM
from fxlrp.passes.request import Program, Request
from fxlrp.passes.reroll import RerollLoops
from fxlrp.passes.softmaxes import FindSoftmaxes
from fxlrp.rules import starts
from fxlrp.runtime.captures import CapturedModel
from fxlrp.runtime.inputs import InputSpec, forward_shapes, input_specs
from fxlrp.runtime.recipe import LOW, Recipe
from fxlrp.runtime.weights import dtype_of
from fxlrp.steps.batch_axis import BatchAxis, item_sum
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.batch import PickedItemError

_ONLY_AS_PLACES = (
    ", but by places, whole numbers or comparisons, such as those of an argmax, a mask or a sampled grid: they are "
    "held constant, and no relevance leads through them"
)
_SERIALS = count()
MOST_PROGRAMS = 24
"""How many programs of a plan are kept: one per kind of request."""


class IndependentError(CaptureError):
    """The output that is explained does not depend on the input, as far as it was read."""


@dataclass(eq=False)
class Plan:
    """A captured model with its rules assigned, and the programs that are emitted from it on demand.

    Attributes:
        captured: the graph as read.
        recipe: what was asked for.
        call: the call that it was captured for; ``None`` where it was traced symbolically.
        dtype: the floating point type that it was captured in, because export writes casts down.
        forward: the forward graph, canonical, annotated, with joins and rules, loops over cells rerolled.
        explained: the node where relevance starts.
        start: what enters there.
        serial: a number that no other plan has.
        casts: whether the model itself casts values that carry signal.
        inputs: what the graph says of each input.
    """

    captured: Captured
    recipe: Recipe
    call: Call | None = None
    dtype: torch.dtype | None = None
    _programs: OrderedDict[Request, Program] = field(default_factory=OrderedDict)
    _shapes: tuple[Any, fx.GraphModule, Shapes] | None = None
    _as_written: fx.GraphModule | None = None
    _classes: int | None = None

    def __post_init__(self) -> None:
        self.serial = next(_SERIALS)
        # Plain attributes, which torch.compile can follow where an explainer is compiled as a whole.
        self._reroll = RerollLoops()
        self.forward = self._reroll(self._annotated())
        if not self._reroll.lost.isdisjoint(self.recipe.checkpoints):
            self._reroll, self.forward = RerollLoops(), self._annotated()
        self.explained = self._explained(self.forward)
        self.casts = self._casts()
        asked = self.recipe.chosen_start
        self.start = (
            suited_start(asked, self.explained) if asked is not None
            else fitting_start(self.explained, self.forward, self.recipe.chosen_preset.start)
        )  # fmt: skip
        self.inputs = input_specs(self.forward, self.captured.shapes)

    def _annotated(self) -> fx.GraphModule:
        stage("its graph is written in the vocabulary")
        recipe = self.recipe
        forward = canonicalize(self.captured)
        assign = Assign(
            recipe.chosen_preset, recipe.rules, split=recipe.chosen_split, identity_skips=recipe.identity_skips
        )
        for step in (FindSoftmaxes(), Annotate(), FindJoins(), FindDepth(), assign, FoldNorms()):
            forward = step(forward)
        return forward

    def _forward_for(self, request: Request) -> fx.GraphModule:
        """The forward graph; where a request names what is lost in it, that with all loops as the model has them.

        Nodes that it alone has can be asked for beside those that receive less in it.
        """
        lost, new = self._reroll.lost, self._reroll.new
        nodes = request.nodes if new.isdisjoint(request.nodes) else ()
        if lost.isdisjoint((*request.conditions, *request.checkpoints, *nodes)):
            return self.forward
        if self._as_written is None:
            self._as_written = self._annotated()
        return self._as_written

    def _explained(self, forward: fx.GraphModule) -> fx.Node:
        outputs: Any = next(node for node in forward.graph.nodes if node.op == "output").args[0]
        if not isinstance(outputs[0], fx.Node) or not facts(outputs[0]).signal:
            which = "that output= picks " if callable(self.recipe.output) else ""
            raise IndependentError(
                f"the output {which}does not depend on the input"
                + (f" (output={self.recipe.output!r})" if which else "")
                + (_ONLY_AS_PLACES if comes_from_input(outputs[0]) else "")
            )
        return outputs[0]

    def _casts(self) -> bool:
        cast = torch.ops.aten.to.dtype
        return any(node.target is cast and facts(node).signal for node in self.forward.graph.nodes)

    @property
    def items(self) -> Items:
        """Which axis of each input is the batch."""
        return self.captured.items

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [spec.name for spec in self.inputs]

    def count(self, tensors: Sequence[Tensor]) -> int:
        """How many items there are in inputs."""
        return self.items.count(self.names, tensors)

    def shape_of_items(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The shape of an input without the batch."""
        shape = tuple(tensor.shape)
        if self.items.whole:
            return shape
        axis = self.items.axis_of(name, tensor.dim())
        return shape[:axis] + shape[axis + 1 :]

    def slice_axes(self, tensors: Sequence[Tensor]) -> list[int]:
        """Where relevance of several targets has the axis for them: behind the batch; in front where there is none."""
        if self.items.whole:
            return [0] * len(tensors)
        return [self.items.axis_of(name, x.dim()) + 1 for name, x in zip(self.names, tensors, strict=True)]

    def arrived(self, relevance: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """The relevance of all inputs together, (batch,), in float64."""
        axes: list[Any] = [ONE_ITEM] * len(tensors)
        if not self.items.whole:
            count = self.count(tensors)
            axes = [BatchAxis(axis - 1, 1, count) for axis in self.slice_axes(tensors)]
        return torch.stack([item_sum(part, axis) for part, axis in zip(relevance, axes, strict=True)]).sum(dim=0)

    def starts(self, tensors: Sequence[Tensor]) -> int:
        """How many targets there may be: one per item; where all is one item, one per row of the output."""
        if not self.items.whole:
            return self.count(tensors)
        return next(iter(self.shapes(tensors)[self.explained]), 1)

    @property
    def joins(self) -> list[Join]:
        """The adds where two branches meet."""
        return [facts(node).join for node in self.forward.graph.nodes if facts(node).kind is Kind.JOIN]

    @property
    def returns(self) -> pytree.TreeSpec:
        """The structure of what the model returns."""
        return self.captured.returns

    @property
    def plain(self) -> Program:
        """The program of an explanation of one target per item, without a wish of the call."""
        return self.program(self.fitted(Request(), packed=False))

    @property
    def as_emitted(self) -> Program:
        """The same program as the rules wrote it, before the optimiser worked on it: what pictures show."""
        return self.program(self.fitted(Request(optimizations=self.known_when_emitted), packed=False))

    @property
    def known_when_emitted(self) -> tuple[str, ...]:
        """The optimisations asked for that are no pass, but knowledge that rules use."""
        return tuple(name for name in self.recipe.optimizations if name in EMITTED)

    def fitted(self, request: Request, *, packed: bool) -> Request:
        """A request as this model's programs can be, with what ``compile`` was asked for.

        Casts in the model need mixed precision. A ledger tells what each node does, so its program stays as
        the rules wrote it.

        Args:
            request: what is wanted.
            packed: whether weights may be packed for the processor.
        """
        names = self.recipe.optimizations if request.optimizations is None else request.optimizations
        if request.ledger:
            names = self.known_when_emitted
        if not packed or self.casts:
            names = tuple(name for name in names if name != PACK_WEIGHTS)
        precision = "mixed" if self.casts and request.precision == "uniform" else request.precision
        return replace(
            request, checkpoints=tuple(self.recipe.checkpoints), optimizations=names, precision=precision
        )

    def program(self, request: Request) -> Program:
        """The relevance graph of a fitted request, emitted when it is first asked for; the latest ones are kept."""
        program = self._programs.get(request)
        if program is None:
            stage("the relevance of its nodes is written")
            forward = self._forward_for(request)
            explained = self._explained(forward)
            program = emit(forward, explained, self.start, request)
            if self.recipe.memory == LOW:
                program.module = Recompute(kept_values(forward.graph, explained))(program.module)
            program.module = optimize(program.module, request.optimizations or ())
        self._programs[request] = program
        self._programs.move_to_end(request)
        return program

    def learn(self, output: Tensor) -> bool:
        """See an output of the model, and how many classes it has; whether the start is another one after that.

        It is where each item's values sum to one, or are none: a softmax has many spellings, and the output of each is
        a probability; a single number is no class. The programs are then of the old start.
        """
        self._see_classes(output.shape)
        asked = self.recipe.chosen_start is None and self.start in _NOT_GIVEN
        if asked and output.dim() < 2 and self.start not in _BY_SHAPE:  # a number for each item, and no classes
            self.start = starts.OF_CLASSES[self.recipe.chosen_preset.start][1]
            return True
        if not asked or output.dim() != 2 or output.shape[1] < 2 or not output.is_floating_point():
            return False
        off = (output.sum(dim=1) - 1).abs().max()
        if not bool((output >= 0).all()) or float(off) > 64 * torch.finfo(output.dtype).eps:
            return False
        self.start = starts.given
        return True

    def drop_programs(self, most: int) -> list[Program]:
        """Keep at most so many programs, those that were asked for last; what is dropped."""
        return [self._programs.popitem(last=False)[1] for _ in range(len(self._programs) - most)]

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments ``(args, kwargs)`` of the model for its tensor inputs."""
        if self.call is not None:
            return self.call.arguments(tensors)
        by_name = dict(zip((spec.name for spec in self.inputs), tensors, strict=True))
        parameters = inspect.signature(self.captured.model.forward).parameters
        named = {name: by_name.pop(name) for name in parameters if name in by_name and _by_name_only(parameters[name])}
        return tuple(by_name.values()), named

    def serves(self, call: Call, dtype: torch.dtype | None) -> bool:
        """Whether this graph was captured for calls like ``call`` of a model in ``dtype``."""
        if self.call is not None:
            return self.call.key == call.key and self.dtype == dtype
        names = tuple(spec.name for spec in self.inputs)
        return call.plain and call.names == names and all(map(InputSpec.takes, self.inputs, call.floating))

    def takes(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the sizes of inputs are among those that the capture left free."""
        if self.call is None:
            return True
        fits = all(map(InputSpec.fits_capture, self.inputs, tensors))
        return fits and (not tensors[0].dim() or self.captured.serves(tensors))

    def fits(self, inputs: Sequence[Any], named: Mapping[str, Any], dtype: torch.dtype | None) -> bool:
        """Whether a call is plainly one that this graph serves: one tensor for each input, in order."""
        if named or len(inputs) != len(self.inputs):
            return False
        if self.call is not None and (not self.call.plain or self.dtype != dtype):
            return False
        return all(
            isinstance(value, Tensor) and spec.takes(value.is_floating_point())
            for spec, value in zip(self.inputs, inputs, strict=True)
        ) and self.takes(inputs)

    def shapes(self, inputs: Sequence[Tensor], forward: fx.GraphModule | None = None) -> Shapes:
        """The shape of every forward value for ``inputs``; those that were last asked for are kept.

        Args:
            inputs: the inputs.
            forward: which forward graph is meant; ``None``: the usual one.

        Raises:
            InputError: the model cannot take inputs of these shapes.
        """
        key, forward = tuple(tensor.shape for tensor in inputs), forward or self.forward
        if self._shapes is None or self._shapes[0] != key or self._shapes[1] is not forward:
            self._shapes = key, forward, forward_shapes(forward, inputs)
        return self._shapes[2]

    def class_count(self, inputs: Sequence[Tensor]) -> int | None:
        """How many classes the output has, ``None`` where it is not (batch, classes)."""
        if self._classes is None:
            self._see_classes(self.shapes(inputs)[self.explained])
        return self._classes if self._classes is not None and self._classes >= 0 else None

    def _see_classes(self, shape: Any) -> None:
        self._classes = shape[1] if len(shape) == 2 else -1


_NOT_GIVEN = (starts.value, *(start for pair in starts.OF_CLASSES.values() for start in pair))
"""The fitting starts that take an output for no probability."""
_BY_SHAPE = (starts.value, *(by_shape for _, by_shape in starts.OF_CLASSES.values()))
"""The fitting starts that look at the shape of an output."""


def _by_name_only(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY


def traced(captures: CapturedModel, recipe: Recipe) -> Plan:
    """The plan of a model that symbolic tracing can follow.

    Raises:
        UntraceableError: it cannot.
        UnknownOperationError: it can, but what it finds is not in the vocabulary.
    """
    return Plan(captures.traced(recipe.output, recipe.items), recipe)


def exported(
    captures: CapturedModel, recipe: Recipe, call: Call, tensors: Sequence[Tensor], dtype: torch.dtype | None = None, *,
    fixed: bool = False,
) -> Plan:  # fmt: skip
    """The plan of a model as ``torch.export`` reads it from example inputs.

    Args:
        captures: the model.
        recipe: what was asked for.
        call: how the model is called.
        tensors: the example inputs.
        dtype: the floating point type to read the model in, where that is not its own.
        fixed: whether to read it for these sizes alone.
    """
    captured = captures.exported(call, tensors, recipe.output, dtype=dtype, fixed=fixed)
    return Plan(captured, recipe, call, dtype or dtype_of(captures.model))


def may_export(reason: CaptureError, model: nn.Module) -> bool:
    """Whether a model that was not captured symbolically may yet be captured by export."""
    if isinstance(reason, IndependentError):
        return has_hooks(model)  # which a trace does not run, and forward() may read what they keep
    if isinstance(reason, PickedItemError):
        return reason.of_input
    return isinstance(reason, UntraceableError) or (isinstance(reason, UnknownOperationError) and reason.opaque)
