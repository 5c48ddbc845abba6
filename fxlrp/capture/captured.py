"""What capture hands to the compiler, and what a model must be to be captured."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from fxlrp.capture.answers import Questions
from fxlrp.capture.double import COMPUTING
from fxlrp.common.errors import CaptureError, TrainingModeError
from fxlrp.common.items import FRONT, Items

Tensors = dict[str, torch.Tensor]

Shape = tuple[int | str, ...]
"""An axis is a number where it is fixed; axes that must agree bear the same name."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that compute nothing, and so are in no mode; torch itself leaves those of parametrisations in training."""

_QUANTISED = ("torch.ao.nn.", "torch.ao.quantization", "torch.nn.quantized", "torch.nn.qat")
"""Packages whose modules compute, or imitate, what integer kernels compute."""

USUAL_OUTPUTS = ("logits", "out")
"""Under which key Hugging Face and torchvision return what a prediction is read from."""


@dataclass
class Captured:
    """A graph as traced, and the tensors that it refers to.

    The graph returns a list: the value to be explained, then all that the model returns,
    flattened as ``returns`` says.

    Attributes:
        graph: the graph, in the spellings of the model or of ATen.
        model: the model that it was read from.
        returns: the structure of what the model returns.
        constants: tensors that the model made while it was traced, by name.
        way: ``"symbolic"`` or ``"export"``.
        integers: the inputs that hold integers or booleans, where that is known.
        shapes: by input, the shape that it must have, where that is known.
        batches: the smallest and the largest batch that it serves.
        example_batch: the batch of the examples that it was read from; 0: none were needed.
        numbers: buffers of one element of which forward() made Python numbers, and those.
        asks_batch: whether forward() asks for the size of the batch in a way that could not stay free.
        items: which axis of each input is the batch.
        questions: what forward() asked of the values of integers, with the answers for which this graph was read.
    """

    graph: fx.Graph
    model: nn.Module
    returns: pytree.TreeSpec
    constants: Tensors = field(default_factory=dict)
    way: str = "symbolic"
    integers: frozenset[str] = frozenset()
    shapes: dict[str, Shape] = field(default_factory=dict)
    batches: tuple[int, float] = (1, math.inf)
    example_batch: int = 0
    asks_batch: bool = False
    numbers: Mapping[str, float] = field(default_factory=dict)
    items: Items = FRONT
    questions: Questions | None = None

    def changed_number(self) -> str:
        """The name of a buffer that no longer holds the number that was made of it; none: ``""``."""
        numbers = self.numbers.items()
        return next((name for name, number in numbers if attribute(self.model, name).item() != number), "")

    @property
    def fixed(self) -> bool:
        """Whether it was read for one size of the batch alone."""
        return self.batches[0] == self.batches[1]

    @cached_property
    def inputs(self) -> list[str]:
        """The names of the inputs, which each call asks for."""
        return [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]

    def serves(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these inputs take the way through the model that was read."""
        if not self.serves_batch(self.items.count(self.inputs, tensors)):
            return False
        return self.questions is None or self.questions.alike(tensors, self.tensor)

    def serves_batch(self, size: int) -> bool:
        """Whether a batch of this size takes the way through the model that was read."""
        smallest, largest = self.batches
        return smallest <= size <= largest

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter, buffer or constant of this name, as it is now."""
        return self.constants[name] if name in self.constants else attribute(self.model, name)


def attribute(model: nn.Module, name: str) -> Any:
    """``model.a.b.c`` for ``"a.b.c"``."""
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part)
    return value


def has_attribute(model: nn.Module, name: str) -> bool:
    """Whether there is a tensor of this dotted name."""
    try:
        return isinstance(attribute(model, name), torch.Tensor)
    except AttributeError:
        return False


def tensor_proxy(tracer: Any, node: fx.Node, name: str, tensor: torch.Tensor) -> fx.Proxy:
    """A proxy for a parameter or buffer; a parameter's shape is a constant, not a node."""
    if isinstance(tensor, nn.Parameter):
        return fx.proxy.ParameterProxy(tracer, node, name, tensor)
    return fx.Proxy(node, tracer)


def flat_outputs(returned: Any, output: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """The value to be explained, then all that was returned, and how that is put together.

    Args:
        returned: what the model returned, of tensors or of proxies.
        output: which of it to explain, as ``compile(output=…)`` takes it.

    Raises:
        CaptureError: it does not say which one.
    """
    explained = chosen_output(returned, output)
    if is_dataclass(returned) and not isinstance(returned, Mapping):
        returned = {each.name: getattr(returned, each.name) for each in fields(returned)}
    leaves, structure = pytree.tree_flatten(returned)
    # What is no tensor (a cache, a configuration) cannot be part of a graph.
    return [explained, *(leaf if _is_value(leaf) else None for leaf in leaves)], structure


def chosen_output(returned: Any, output: Any) -> Any:
    """The one value of ``returned`` that ``output`` (key, index, callable or ``None``) means."""
    chosen = returned
    if callable(output):
        try:
            chosen = output(returned)
        except Exception as error:
            raise CaptureError(f"output= fails on what the model returns, {described(returned)}: {error!r}") from error
    elif output is not None:
        try:
            named = isinstance(output, str) and not isinstance(returned, Mapping | torch.Tensor | fx.Proxy)
            chosen = getattr(returned, output) if named else returned[output]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise CaptureError(f"output={output!r} is not in what the model returns: {described(returned)}") from error
    elif isinstance(returned, Mapping):
        values = list(returned.values())
        usual = [returned[key] for key in USUAL_OUTPUTS if key in returned]
        chosen = values[0] if len(values) == 1 else usual[0] if len(usual) == 1 else returned
    elif isinstance(returned, Sequence):
        tensors = [value for value in returned if value is not None]
        chosen = tensors[0] if len(tensors) == 1 else returned
    if not _is_tensor(chosen):
        raise CaptureError(f"the model returns {described(chosen)}: say with output= which one to explain")
    return chosen


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | fx.Proxy)


def _is_value(value: Any) -> bool:
    return isinstance(value, torch.Tensor | fx.Proxy | int | float | str | bool | None)


def described(structure: Any) -> str:
    """What a model returns, in words."""
    if isinstance(structure, Mapping):
        return f"a dict with the keys {', '.join(map(repr, structure))}"
    if isinstance(structure, list | tuple):
        return f"a {type(structure).__name__} of {len(structure)}"
    return "one tensor" if _is_tensor(structure) else f"a {type(structure).__name__}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what only runs it elsewhere or faster: its modules then have the names that its author knows.

    A wrapper whose own hooks run is kept, because it does more than that.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            inner = model.module
        if not isinstance(inner, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
            return model
        model = inner


def as_module(model: Any) -> Any:
    """A model as a module: an exported program, or the module of one, whose mode cannot be chosen, as a plain graph."""
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, fx.GraphModule) or "eval" not in vars(model):  # torch.export sets one that refuses
        return model
    graph = copy.deepcopy(model.graph)
    for node in reversed(graph.nodes):
        if node.op == "call_module" and "_guards_fn" in str(node.target):  # checks of sizes, which compute nothing
            graph.erase_node(node)
    return fx.GraphModule(model, graph, "ExportedModel").eval()


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module that torch itself did not put there to compute a weight."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if not isinstance(hook, COMPUTING)]


def has_hooks(model: nn.Module) -> bool:
    """Whether any module of a model has hooks of its user."""
    return any(map(_hooks, model.modules()))


def check_model(model: nn.Module) -> None:
    """Raise where a model cannot be explained as it is: not a module, in training mode, quantised."""
    if not isinstance(model, nn.Module):
        named = isinstance(model, str | os.PathLike)
        raise CaptureError(
            f"fxlrp compiles a torch.nn.Module, not {type(model).__name__}"
            + (": load it first; a path is that of an .onnx file" if named else "")
        )
    for name, module in model.named_modules():
        where = f"{name!r} is" if name else "the model is"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} TorchScript (torch.jit.script or torch.jit.trace), whose code cannot be read as a graph: "
                "compile the original torch.nn.Module that it was made of"
            )
        if type(module).__module__.startswith(_QUANTISED):
            raise CaptureError(
                f"{where} quantised, a {type(module).__module__}.{type(module).__name__}: its integer kernels have no "
                "rules. Explain the model that it was made of instead; weights alone may be integers where forward() "
                "makes floating point numbers of them"
            )
        if shadowed := [child for child in module._modules if hasattr(nn.Module, child)]:
            raise CaptureError(
                f"{where} a {type(module).__name__} with a child called {shadowed[0]!r}: every module of torch has an "
                "attribute of that name, which would be taken for the child; rename it"
            )
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise CaptureError(
                f"{where} a lazy {type(module).__name__} without weights yet: call the model on an input, then compile"
            )
    sharded = [name for name, tensor in model.named_parameters() if type(tensor.data).__name__ == "DTensor"]
    if sharded:
        raise CaptureError(
            f"{sharded[0]!r} lies in shards on several processes (DTensor, of fully_shard or tensor parallelism), of "
            "which one program cannot be made: build the model once more without sharding and load "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) into it"
        )
    training = [
        name or "the model itself" for name, module in model.named_modules()
        if module.training and not isinstance(module, _CONTAINERS)
    ]  # fmt: skip
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise TrainingModeError(
            f"{', '.join(training[:3])}{more} in training mode; call model.eval() before fxlrp.compile(model)"
        )
    hooked = [name or type(module).__name__ for name, module in model.named_modules() if _hooks(module)]
    if hooked:
        warnings.warn(f"the forward hooks of {', '.join(hooked[:3])} are not part of the explanation", stacklevel=3)


def check_loaded(model: nn.Module) -> None:
    """Raise where weights of a model have no values. What is not to be run, but drawn, needs none.

    Raises:
        CaptureError: so it is.
    """
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if empty:
        raise CaptureError(
            f"{empty[0]!r} has no values: it is on the meta device, because the model was made there or its weights "
            "were moved out of memory (device_map= with a part on 'disk' or too large for the device); load it into "
            "memory, for example with device_map='cpu'"
        )
