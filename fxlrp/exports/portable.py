"""An explanation as a function of tensors alone, which is what can be exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.exported import example_batch, quiet
from fxlrp.common.errors import ExportError
from fxlrp.common.version import __version__
from fxlrp.exports.signature import PREDICTED, Signature
from fxlrp.passes.optimize.base import retarget
from fxlrp.passes.request import Request, Results
from fxlrp.results.explanation import Explanation
from fxlrp.rules.starts import resolve_target, told
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.inputs import InputSpec
from fxlrp.runtime.plan import Plan
from fxlrp.steps.primitives import primitive
from fxlrp.steps.recurrence import of_lengths

_PLAIN = (dict, list, tuple)

_OF_LENGTHS: Any = torch.ops.fxlrp.recurrence.default
"""The one operation of fxlrp's own in programs: a file that runs without fxlrp has its steps instead."""


class Portable(nn.Module):
    """Maps ``(*inputs, target)``, tensors all, to the tensors of an explanation.

    Args:
        program: the relevance graph.
        takes_target: whether the last argument is the target.
        returns: what the model returns.
        inputs: the names of the inputs.
    """

    def __init__(
        self, program: fx.GraphModule, *, takes_target: bool, returns: pytree.TreeSpec, inputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.program = _with_open_target(program) if takes_target else program
        self.takes_target = takes_target
        self.returns = (returns,)
        self.inputs = inputs
        self.training = False

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        results = self.program(*tensors) if self.takes_target else self.program(*tensors, None)
        return present(self.explanation(Results(**results)))

    def explanation(self, results: Results) -> Explanation:
        """What the program gave, put together; the model's own types of output become plain ones."""
        output = pytree.tree_unflatten(results.output, self.returns[0])
        relevance = results.relevance
        return Explanation(
            relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
            output=_plain(output),
            target=results.target,
            start=results.start,
            checkpoints=results.checkpoints,
            inputs=self.inputs,
        )


@dataclass(frozen=True)
class Exported:
    """An exported explanation.

    Attributes:
        program: the ``torch.export.ExportedProgram``.
        signature: what it takes and gives.
        examples: inputs, and a target where it takes one, that it was exported with.
        expected: the tensors of the explainer's own explanation of the first two of them.
    """

    program: torch.export.ExportedProgram
    signature: Signature
    examples: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]


@primitive
def open_target(output: Tensor, target: Tensor) -> Tensor:
    """The target, or the predicted class where it is ``PREDICTED``: (batch,).

    Other negative numbers are made what no runtime can look up: to some a −2 is the last class but one.
    """
    known = torch.where(target < PREDICTED, output.shape[1], target)
    return torch.where(target == PREDICTED, output.argmax(dim=1), known)


def exported(engine: Engine, example_inputs: Any = None, *, portable: Any = None) -> Exported:
    """Export the explanation with ``torch.export``; the batch stays free.

    Args:
        engine: what explains.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; ``None``: inputs
            like those of its last call.
        portable: makes the program that is exported out of the one that the rules wrote and the names of the
            optimisations that ``compile`` was asked for; ``None``: they are as the explainer has them.

    Raises:
        ExportError: there is no example, the model is read for some batches alone, or the explanation cannot be
            exported.
        InputError: an example does not fit the model.
    """
    if not engine.recipe.items.in_front:
        raise ExportError(
            f"explainers of batch={engine.recipe.items.told!r} are not exported: the files that are made take inputs "
            "with the batch in front"
        )
    prepared = engine.example(example_inputs)
    plan, tensors = prepared.plan, prepared.inputs
    inputs = example_batch(tensors)
    _check_any_batch(plan, len(inputs[0]))
    written = Request() if portable is None else Request(optimizations=plan.known_when_emitted)
    program = engine.program(prepared, written, packed=False).module
    engine.weights.refresh()
    program = program if portable is None else portable(program, engine.recipe.optimizations)
    names = tuple(spec.name for spec in plan.inputs)
    with torch.no_grad():
        first = Results(**program(*(tensor[:1] for tensor in inputs), None))
    takes_target = first.target is not None
    module = Portable(program, takes_target=takes_target, returns=plan.returns, inputs=names)
    explanation = module.explanation(first)
    spec = pytree.tree_structure(explanation)
    signature = Signature(
        inputs=tuple(_spec(spec, tensor) for spec, tensor in zip(plan.inputs, inputs, strict=True)),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in inputs),
        outputs=_output_names(explanation),
        structure=pytree.treespec_dumps(spec),
        absent=tuple(i for i, leaf in enumerate(pytree.tree_leaves(explanation)) if leaf is None),
        takes_target=takes_target,
        classes=plan.class_count(tensors) if takes_target else None,
        about=_about(engine, plan),
    )
    open_targets = torch.full((len(inputs[0]),), PREDICTED, device=inputs[0].device)
    examples = (*inputs, open_targets) if takes_target else inputs
    batch = torch.export.Dim("batch", min=1, max=2**31)
    axes: Any = {"tensors": tuple({0: batch} for _ in examples)}
    try:
        with torch.no_grad(), quiet():
            found = torch.export.export(module, examples, dynamic_shapes=axes, strict=False)
            if any(node.target is _OF_LENGTHS for node in found.graph.nodes):
                found = found.run_decompositions({_OF_LENGTHS: of_lengths})
    except Exception as error:
        reason = str(error).strip().split("\n\n")[0]
        raise ExportError(f"this explanation cannot be exported by torch.export: {reason}") from error
    few = replace(prepared, inputs=[tensor[:2] for tensor in inputs], target=None, returned=None)
    own = engine.run(few, Request())
    return Exported(found, signature, examples, tuple(present(module.explanation(own))))


def present(explanation: Explanation) -> list[Tensor]:
    """The tensors of an explanation, in order."""
    return [leaf for leaf in pytree.tree_leaves(explanation) if leaf is not None]


def like(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of the same tensor."""
    worst = 0.0
    for result, wanted in zip(results, expected, strict=True):
        scale = float(wanted.abs().max()) if wanted.is_floating_point() else 1.0
        if wanted.numel():
            worst = max(worst, float((result - wanted).abs().max()) / (scale or 1.0))
    return worst


def check_path(path: Any, suffixes: tuple[str, ...]) -> None:
    """Raise where a file cannot be written under this name.

    Raises:
        ExportError: the suffix is another one, or there is no such folder.
    """
    if path.suffix.lower() not in suffixes:
        raise ExportError(f"{path}: the name of the file must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")


def _check_any_batch(plan: Plan, example: int) -> None:
    """Raise where the graph of a plan is one of some batches alone.

    Raises:
        ExportError: so it is.
    """
    captured = plan.captured
    if not all(map(captured.serves_batch, (1, example))):
        smallest, largest = captured.batches
        sizes = f"{smallest} alone" if captured.fixed else f"{smallest} to {largest}"
        raise ExportError(
            f"{type(captured.model).__name__} was captured for batches of {sizes}, and what is exported takes any: "
            "write forward() for the batch as a whole, without a loop over the items or a number made of how many "
            "there are, and compile the model again"
        )


def _with_open_target(program: fx.GraphModule) -> fx.GraphModule:
    """A copy of a program whose target may be ``PREDICTED``."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    module = fx.GraphModule(program, graph, class_name="Relevance")
    for node in graph.nodes:
        if node.target is resolve_target:
            retarget(node, open_target, *node.args)
    module.recompile()
    return module


def _spec(spec: InputSpec, example: Tensor) -> InputSpec:
    shape: tuple[int | str, ...] = ("batch", *example.shape[1:])
    return InputSpec(spec.name, integer=spec.integer, entries=spec.entries, shape=shape)


def _plain(output: Any) -> Any:
    """An output without the model's own types: dicts, lists, tuples and tensors."""
    if isinstance(output, dict):
        return {str(key): _plain(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return type(output)(map(_plain, output)) if type(output) in _PLAIN else tuple(map(_plain, output))
    return output


def _output_names(explanation: Explanation) -> tuple[str, ...]:
    names = []
    for path, leaf in pytree.tree_flatten_with_path(explanation)[0]:
        if leaf is None:
            continue
        first, *rest = (str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
        if first == "relevance" and rest:
            rest = [explanation.inputs[int(rest[0])]]
        names.append(".".join([{"checkpoints": "checkpoint"}.get(first, first), *rest]))
    return tuple(names)


def _about(engine: Engine, plan: Plan) -> dict[str, str]:
    return {
        "start": told(plan.start),
        "model": type(engine.model).__name__, "preset": engine.recipe.chosen_preset.name,
        "fxlrp": __version__, "torch": torch.__version__,
    }  # fmt: skip
