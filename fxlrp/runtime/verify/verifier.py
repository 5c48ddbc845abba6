"""When the model is compared with its graph: once for each kind of call, at each, or never."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture import Snapshot
from fxlrp.capture.double import to_run
from fxlrp.capture.followed import run_unwatched
from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import CaptureError, FxlrpError
from fxlrp.runtime.inputs import forward_shapes
from fxlrp.runtime.plan import Plan
from fxlrp.runtime.verify import reasons
from fxlrp.runtime.verify.comparison import Comparison
from fxlrp.runtime.verify.distance import distance
from fxlrp.runtime.verify.randomness import random_state, randomness_kept
from fxlrp.runtime.verify.sides import Guarded, Sides
from fxlrp.runtime.weights import Weights

MOST_KINDS = 256
"""How many kinds of calls are remembered as verified."""
OTHERS = 2
"""How many items stand beside one whose model is read for one item alone."""


class Verifier:
    """Compares the model with what was captured from it.

    Args:
        model: the model.
        weights: the tensors of the explainer, which may be converted.
        output: which output of the model is explained, as ``compile(output=…)`` takes it.
        mode: as ``compile(verify=…)`` takes it: at the ``"first"`` call of each kind, ``"always"``, or ``"never"``.
    """

    def __init__(self, model: nn.Module, weights: Weights, output: Any, mode: str) -> None:
        self._model = model
        self._weights = weights
        self._output = output
        self._mode = mode
        self._verified: OrderedDict[Hashable, None] = OrderedDict()

    def check(self, plan: Plan, inputs: Sequence[Tensor], autocast: bool) -> list[Any] | None:
        """Raise where the graph of ``plan`` is not the model for calls like this one.

        Runs the model and the graph once each, and with several items also the model on the first and the last
        one alone. Does nothing where such a call was verified before.

        Returns:
            The explained output of the model, and all that it returns, flattened, where it was run.

        Raises:
            DifferentFunctionError: it computes something else, and a capture of another kind may do better.
            CaptureError: the model is random, keeps a state, has hooks that change what it computes, or mixes the
                items of a batch.
        """
        if self._mode == "never" or is_compiling():
            return None
        key = self._key(plan, inputs, autocast)
        # Answers about all items of a batch may be others for one of them.
        answered = plan.captured.questions is not None and plan.count(inputs) > 1
        if self._mode == "first" and key in self._verified and not answered:
            self._verified.move_to_end(key)
            return None
        sides = Sides(self._model, self._weights, self._output, plan)
        with torch.no_grad(), randomness_kept():
            outputs = _checked(Comparison(sides, list(inputs)))
        self._verified[key] = None
        while len(self._verified) > MOST_KINDS:
            self._verified.popitem(last=False)
        return outputs

    def is_alone(self, plan: Plan, inputs: Sequence[Tensor]) -> bool:
        """Whether the model answers one item alike when it stands before others, as far as it takes several.

        Args:
            plan: knows how the model is called.
            inputs: of one item.
        """
        if self._mode == "never" or is_compiling():
            return True
        sides = Sides(self._model, self._weights, self._output, plan)
        with torch.no_grad(), randomness_kept():
            return _answers_among_others(Comparison(sides, list(inputs)))

    def _key(self, plan: Plan, inputs: Sequence[Tensor], autocast: bool) -> Hashable:
        named = zip(plan.names, inputs, strict=True)
        forms = tuple((plan.shape_of_items(name, x), x.dtype, x.device) for name, x in named)
        batch = plan.count(inputs)
        kind = batch if plan.captured.asks_batch else batch == 1
        return plan.serial, forms, kind, autocast, self._weights.dtype, self._weights.device


def _checked(comparison: Comparison) -> list[Any]:
    """What :meth:`Verifier.check` gives; raises as it says."""
    sides, inputs, batch = comparison.sides, comparison.inputs, comparison.batch
    before, double = random_state(), to_run(sides.of)
    snapshot, versions = Snapshot(double), _versions(double)
    model = _model_outputs(sides, inputs, double)
    if random_state() != before and not comparison.same_for_seeds():
        raise reasons.is_random(sides.of)
    explained: Tensor = model[0]
    axis = sides.plan.plain.output_axis
    if axis is not None and (explained.dim() <= axis or explained.shape[axis] != batch):
        raise reasons.has_no_batch(explained, batch)
    touched = snapshot.touched() or _versions(double) != versions
    if touched and (_remembers(comparison, double) or comparison.differ(_again(comparison), explained)):
        raise reasons.keeps_state(sides.of)
    try:
        graph = sides.graph(inputs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # not of the model, which took the same input
        raise reasons.why_different(comparison, error) from error
    for ours, theirs in zip(graph, model, strict=False):
        if isinstance(theirs, Tensor) and isinstance(ours, Tensor) and not comparison.agree(ours, theirs):
            raise reasons.why_different(comparison)
    if batch > 1:
        _check_items(comparison, explained)
    return model


def _model_outputs(sides: Sides, inputs: list[Tensor], double: nn.Module) -> list[Any]:
    try:
        with run_unwatched(sides.of), Guarded(sides.of.parameters()):
            return sides.model(inputs, double)
    except (FxlrpError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        forward_shapes(sides.plan.forward, inputs)  # says which layer cannot take it
        raise CaptureError(f"the model itself cannot run this input: {error}") from error


def _check_items(comparison: Comparison, explained: Tensor) -> None:
    """Raise where the first or the last item has another output when it is alone."""
    sides, inputs, batch = comparison.sides, comparison.inputs, comparison.batch
    plan = sides.plan
    axis, order = plan.plain.output_axis or 0, torch.arange(batch)
    for item in (0, batch - 1):
        try:
            alone = sides.model(plan.items.picked(plan.names, inputs, order[item : item + 1]))[0]
            within = explained.narrow(axis, item, 1)
        except Exception:  # it is written for one batch size: do the items answer alike at other places?
            alone = sides.model(plan.items.picked(plan.names, inputs, order.roll(-item - 1)))[0]
            within = explained.roll(-item - 1, axis)
        alike = alone.numel() == within.numel() and comparison.agree(alone.reshape(within.shape), within)
        # A chaotic network enlarges what kernels round.
        if not (alike or _answers_alike_in_float64(comparison, axis, item)):
            raise reasons.mixes_items(sides.of, item, batch)


def _answers_alike_in_float64(comparison: Comparison, axis: int, item: int) -> bool:
    """Whether an item has the same output alone and among the others, where float64 can be computed."""
    sides, inputs, plan = comparison.sides, comparison.inputs, comparison.sides.plan
    try:
        alone = sides.precise(plan.items.picked(plan.names, inputs, torch.tensor([item])))
        within = sides.precise(inputs).narrow(axis, item, 1)
    except Exception:  # forward() makes tensors of float32, or takes no such batch
        return False
    return alone.numel() == within.numel() and distance(alone.reshape(within.shape), within) < 1e-9


def _answers_among_others(comparison: Comparison) -> bool:
    """Whether one item has the same output as the first of several, which are made of it."""
    sides, inputs = comparison.sides, comparison.inputs
    plan, alone = sides.plan, sides.model(inputs)[0]
    copies = plan.items.picked(plan.names, inputs, torch.zeros(OTHERS + 1, dtype=torch.long))
    for name, copy in zip(plan.names, copies, strict=True):
        axis = plan.items.axis_of(name, copy.dim())
        if copy.is_floating_point():  # of integers, which may be lengths, the others are equal
            copy.narrow(axis, 1, OTHERS).mul_(0.75)
    axis = plan.plain.output_axis or 0
    try:
        within = sides.model(copies)[0].narrow(axis, 0, 1)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # it is written for one item
        return False
    return within.shape == alone.shape and comparison.agree(alone, within)


def _remembers(comparison: Comparison, warm: nn.Module) -> bool:
    """Whether a double that was called before answers otherwise than a new one."""
    others = [x * 0.75 if x.is_floating_point() else x.roll(1, 0) for x in comparison.inputs]
    return comparison.differ(comparison.sides.model(others, warm)[0], comparison.sides.model(others)[0])


def _again(comparison: Comparison) -> Tensor:
    """The output of a new double; what its classes hold, it has from the one that was run before."""
    output: Tensor = comparison.sides.model(comparison.inputs)[0]
    return output


def _versions(model: nn.Module) -> list[Any]:
    """Torch's counters of writes to the buffers of a model."""
    return [buffer._version for buffer in model.buffers() if not buffer.is_inference()]
