"""Why model and graph differ, as errors that say what to do."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fxlrp.capture import attribute
from fxlrp.capture.double import to_run, without_hooks
from fxlrp.common.errors import CaptureError
from fxlrp.runtime.verify.comparison import Comparison

_ITSELF = "the forward() of the model itself"
_WAYS = {"symbolic": "symbolic tracing", "export": "torch.export"}


class DifferentFunctionError(CaptureError):
    """What was captured computes something else than the model."""


def why_different(comparison: Comparison, failure: Exception | None = None) -> CaptureError:
    """Why model and graph differ, or why the graph failed, as far as a few more runs can tell."""
    sides, inputs = comparison.sides, comparison.inputs
    if not comparison.same_for_seeds():
        return is_random(sides.of)
    name, way = type(sides.of).__name__, _WAYS[sides.plan.captured.way]
    if failure is not None:
        return DifferentFunctionError(f"what was captured of {name} by {way} fails where the model runs: {failure}")
    hooked = _hooked_modules(sides.of)
    if hooked:
        ours, bare = sides.graph(inputs)[0], sides.model(inputs, without_hooks(sides.of))[0]
        if comparison.agree(ours, bare):
            return CaptureError(
                f"the forward hook of {hooked[0]} changes what the model computes, and hooks are not part of an "
                "explanation: remove the hook, or write what it does into forward()"
            )
    if sides.plan.captured.example_batch and _is_of_batch(comparison):
        return CaptureError(
            f"{name} computes something else for a batch of {comparison.batch} than for "
            f"one of {sides.plan.captured.example_batch}, with which it was captured: its forward() branches on the "
            "size of the batch, and its items would not be explained as if alone"
        )
    return DifferentFunctionError(
        f"what was captured of {name} by {way} computes something else "
        f"than the model; the first difference is in {_first_difference(comparison)}. Likely causes: "
        "forward() asks for the type of a value (type(x) is Tensor, x.dtype is …, an except TypeError that "
        "swallows), for torch.compiler.is_compiling(), or for something outside the model"
    )


def has_no_batch(output: Tensor, batch: int) -> CaptureError:
    """The first axis of the output is not the batch."""
    return CaptureError(
        f"the output has shape {tuple(output.shape)} for a batch of {batch}: its first axis must be the "
        "batch, one value or more per item; a scalar, such as a loss, is explained for no item"
    )


def mixes_items(model: nn.Module, item: int, batch: int) -> CaptureError:
    """An item alone has another output than in its batch."""
    return CaptureError(
        f"{type(model).__name__} mixes the items of a batch: item {item} alone has another output "
        f"than in the batch of {batch}, and its explanation would depend on the others. Give one item at "
        "a time if the model is meant for it; if the first axis of its input is not the batch, say which one is: "
        "compile(…, batch=1) for a transformer or LSTM without batch_first, batch=None for a graph, whose nodes are "
        "one item together; or let forward() move it"
    )


def keeps_state(model: nn.Module) -> CaptureError:
    """What the model computes depends on earlier calls."""
    return CaptureError(
        f"{type(model).__name__} keeps a state: what it computes depends on earlier calls. An explanation is of one "
        "function; take counters and caches of earlier inputs out of forward(), and compile the model again"
    )


def is_random(model: nn.Module) -> CaptureError:
    """The model gives two outputs for one input."""
    return CaptureError(
        f"{type(model).__name__} is random in eval mode: called twice with the same input it gives two outputs. An "
        "explanation is of one function; look for dropout with training=True, torch.rand, bernoulli, gumbel_softmax "
        "or Python's random in forward()"
    )


def _hooked_modules(model: nn.Module) -> list[str]:
    """The modules whose hooks run with their forward(); also where hooks are of all modules."""
    names = [
        f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]  # fmt: skip
    everywhere = nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
    return [*names, "all modules"] if everywhere else names


def _is_of_batch(comparison: Comparison) -> bool:
    """Whether model and graph agree on as many items as the model was captured with."""
    sides, inputs = comparison.sides, comparison.inputs
    index = torch.arange(sides.plan.captured.example_batch) % comparison.batch
    many = sides.plan.items.picked(sides.plan.names, inputs, index)
    return comparison.agree(sides.graph(many)[0], sides.model(many)[0], many)


def _first_difference(comparison: Comparison) -> str:
    """The first module whose output differs."""
    model, theirs, ours = comparison.sides.of, dict[str, Tensor](), dict[str, Any]()
    double = to_run(model)
    for path, module in double.named_modules():

        def record(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            if isinstance(output, Tensor):
                theirs.setdefault(path, output)

        if path:
            vars(module)["_forward_hooks"] = OrderedDict({**module._forward_hooks, -1: record})
    comparison.sides.model(comparison.inputs, double)
    comparison.sides.graph(comparison.inputs, ours)
    for path, value in theirs.items():
        mine = ours.get(path)
        if isinstance(mine, Tensor) and mine.shape == value.shape and comparison.differ(mine, value):
            while path and type(attribute(model, path)).__module__.startswith("torch."):
                path = path.rpartition(".")[0]  # torch's own modules are read right: what it was given differs
            return f"{path!r} ({type(attribute(model, path)).__name__})" if path else _ITSELF
    return _ITSELF
