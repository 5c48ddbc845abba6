"""Explanations in files that run without the model's Python code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import BackendError, ExportError, InputError, TargetError
from fxlrp.exports.archive import SIGNATURE, is_sealed, read, seal, written
from fxlrp.exports.portable import Exported, check_path, exported, like
from fxlrp.exports.signature import PREDICTED, Signature
from fxlrp.interop import captum
from fxlrp.maps.heatmap import heatmap
from fxlrp.results.explanation import Explanation
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.inputs import check_inputs
from fxlrp.runtime.targets import check_one_target, check_target

_TOLERANCES = {"float64": 1e-10, "float32": 1e-3, "int64": 0.0, "int32": 0.0}
"""Of the largest value: far above rounding, which a deep network's own output has as well, and far below a fault."""


def save(engine: Engine, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
    """What :meth:`fxlrp.Explainer.save` does."""
    path = checked_path(path)
    check_path(path, (".pt2",))
    made = exported(engine, example_inputs)
    check_results(made, made.program.module())
    data = written(made.program, asdict(made.signature))
    with whole(path) as beside:
        beside.write_bytes(data)
    return path


def package(engine: Engine, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
    """What :meth:`fxlrp.Explainer.export_aot` does."""
    path = checked_path(path)
    check_path(path, (".pt2",))
    made = exported(engine, example_inputs)
    settings = {"aot_inductor.metadata": {SIGNATURE: made.signature.dump()}, "freezing": True}
    with whole(path) as beside:
        try:
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(
                    made.program, package_path=str(beside), inductor_configs=settings
                )
        except Exception as error:
            raise BackendError(f"Inductor cannot compile this explanation: {error}") from error
        check_results(made, load_package(beside, None, trusted=True).program)
        seal(beside)
    return path


def check_results(made: Exported, run: Callable[..., Any]) -> None:
    """Raise where what was exported does not give what the explainer gives.

    Raises:
        ExportError: it does not.
    """
    try:
        with torch.no_grad():
            worst = like(run(*(example[:2] for example in made.examples)), made.expected)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ExportError(f"what torch.export made of this explanation fails where it runs: {error}") from error
    limit = max(_TOLERANCES.get(dtype, 1e-2) for dtype in made.signature.dtypes)
    if not worst <= limit:
        raise ExportError(f"the exported explanation differs from the explainer's by {worst:.1e} of the largest value")


class SavedExplainer(nn.Module):
    """An explanation read from a file: called as the explainer is that it was saved from.

    It takes inputs of the shape that it was exported with, any batch, and one target per item. It
    has weights of its own, and needs neither the model nor its code.

    Attributes:
        program: computes it, from tensors to tensors.
        signature: what it takes and gives.
        device: where its weights are.
    """

    attribute = captum.attribute
    multiplies_by_inputs = True

    def __init__(self, run: Callable[..., Any], signature: Signature, device: torch.device) -> None:
        super().__init__()
        self.program = run
        self.signature = signature
        self.device = device

    def forward(self, *inputs: Any, target: Any = None, **named: Any) -> Explanation:
        """Explain ``inputs``, tensors (batch, ...), in order or by name.

        Args:
            *inputs: what the model takes.
            **named: the same, by name.
            target: the class to explain: ``None`` (the predicted one), an int, or an integer tensor (batch,).

        Raises:
            InputError: an input does not fit.
            TargetError: the target is no class of the model, or several are given.
            ExportError: the program in the file fails.
        """
        return self.explain(inputs, named, target=target)

    def explain(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any] | None = None, *, target: Any = None
    ) -> Explanation:
        """The same for a tuple of inputs and a dict of those by name. Errors are those of a call."""
        tensors = self._in_order(inputs, named or {})
        for spec, dtype, tensor in zip(self.signature.inputs, self.signature.dtypes, tensors, strict=False):
            if isinstance(tensor, Tensor) and tensor.dtype != getattr(torch, dtype):
                raise InputError(f"input {spec.name} is {tensor.dtype}; it was exported for torch.{dtype}")
        check_inputs(self.signature.inputs, tensors, None)
        for spec, tensor in zip(self.signature.inputs, tensors, strict=True):
            if tensor.device != self.device:
                raise InputError(f"input {spec.name} is on {tensor.device} and the saved explanation on {self.device}")
        batch = tensors[0].shape[0]
        wanted = check_target(target, batch, self.signature.classes, self.device)
        check_one_target(wanted, "a saved explanation")
        if wanted is not None and not self.signature.takes_target:
            raise TargetError("this explanation starts at the output whatever the target: give none")
        last = []
        if self.signature.takes_target:
            last = [torch.full((batch,), PREDICTED, device=self.device) if wanted is None else wanted]
        found = self._run([*tensors, *last])
        return replace(found, start_name=self.signature.about.get("start", ""), given=tuple(tensors))

    def heatmap(self, *inputs: Any, target: Any = None, **named: Any) -> Tensor:
        """Relevance summed over channels, (batch, height, width)."""
        return heatmap(self.explain(inputs, named, target=target).relevance)

    @property
    def forward_func(self) -> nn.Module:
        """What Captum takes for the model: this explanation, because a saved one holds no model."""
        return self

    def has_convergence_delta(self) -> bool:
        """``True``: :meth:`attribute` can return a delta."""
        return True

    def _run(self, tensors: list[Tensor]) -> Explanation:
        """What the program gives.

        Raises:
            ExportError: it fails, though it is given what the file says that it takes.
        """
        try:
            with torch.no_grad():
                return self.signature.explanation(self.program(*tensors))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ExportError(
                f"the program of this file fails for inputs of shape {shapes}: the file was changed, or the model "
                f"does not take them: {error}"
            ) from error

    def _in_order(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        names = [spec.name for spec in self.signature.inputs]
        if "against" in named and "against" not in names:
            raise InputError("against= is for an explainer: a file holds the program of one start")
        unknown = sorted(named.keys() - set(names[len(inputs) :]))
        if unknown or len(inputs) + len(named) != len(names):
            raise InputError(f"the model takes {len(names)} input(s), {', '.join(names)}; give each once")
        return [*inputs, *(named[name] for name in names[len(inputs) :])]


def load_archive(path: Path, device: str | torch.device | None) -> SavedExplainer:
    """The explanation in an archive of torch.

    Raises:
        ExportError: the file is no such explanation, it is damaged, or it holds what fxlrp does not write.
    """
    program, fields = read(path)
    try:
        signature = Signature.of(fields)
        _check_against(signature, program)
        signature.explanation([torch.zeros(1)] * len(signature.outputs))  # its parts fit together
        program.module(check_guards=False)
    except ExportError as error:
        raise ExportError(f"{path} is damaged: {error}") from error
    except Exception as error:
        raise ExportError(f"{path} is damaged: it does not say what its program takes and gives ({error!r})") from error
    if device is not None:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    where = next(iter(program.state_dict.values())).device if program.state_dict else torch.device(device or "cpu")
    return SavedExplainer(program.module(check_guards=False), signature, where)


def _check_against(signature: Signature, program: torch.export.ExportedProgram) -> None:
    """Raise where a signature says something else of a program than the program does.

    Raises:
        ExportError: it does.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    taken = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    given = [values[name] for name in program.graph_signature.user_outputs if isinstance(name, str)]
    takes = len(signature.inputs) + signature.takes_target
    if len(taken) != takes or len(signature.dtypes) != len(signature.inputs):
        raise ExportError(f"the file says that its program takes {takes} tensors, and it takes {len(taken)}")
    if len(given) != len(signature.outputs):
        raise ExportError(f"the file says that its program gives {len(signature.outputs)} tensors, not {len(given)}")
    for spec, dtype, value in zip(signature.inputs, signature.dtypes, taken, strict=False):
        if spec.axis is not None and not 0 <= spec.axis < value.dim():
            raise ExportError(f"the file says that input {spec.name} has an axis {spec.axis}")
        fixed = [size for size in spec.shape or () if not isinstance(size, str)]
        if str(value.dtype) != f"torch.{dtype}" or (spec.shape is not None and fixed != list(value.shape[1:])):
            raise ExportError(f"the file says of input {spec.name} what is not so of its program")
    if signature.classes is not None:
        shapes = [tuple(value.shape[1:]) for value in given if isinstance(value, Tensor)]
        if (signature.classes,) not in shapes:
            raise ExportError(f"the file says that there are {signature.classes} classes, and its program gives others")


def load_package(path: Path, device: str | torch.device | None, trusted: bool) -> SavedExplainer:
    """The explanation in a compiled package; ``trusted``: also one that was compiled elsewhere.

    Raises:
        ExportError: it is none, it is of another device, or it is not to be trusted.
    """
    if not trusted and not is_sealed(path):
        raise ExportError(
            f"{path} is machine code that was not compiled by you on this machine: if you trust where it comes from, "
            "write fxlrp.load(path, compiled=True)"
        )
    try:
        compiled = torch._inductor.aoti_load_package(str(path))
        metadata = compiled.get_metadata()
        if SIGNATURE not in metadata:
            raise ExportError(f"{path} is no explanation that fxlrp compiled")
        signature = Signature.of(json.loads(metadata[SIGNATURE]))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} cannot be loaded: {error}") from error
    where = torch.device(metadata.get("AOTI_DEVICE_KEY", "cpu"))
    if device is not None and torch.device(device).type != where.type:
        raise ExportError(f"{path} was compiled for {where.type}, and cannot run on {device}")
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    return SavedExplainer(compiled, signature, where)
