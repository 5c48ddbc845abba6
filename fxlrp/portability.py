"""The face by which an explanation leaves Python: files, ONNX, compiled packages."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fxlrp.common.errors import ExportError
from fxlrp.runtime.inputs import InputSpec, arguments_of
from fxlrp.runtime.plan import Plan

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


class Portability(ABC):
    """Base of :class:`fxlrp.Explainer`: how an explanation is written to files."""

    _last: tuple[Plan, list[Any]] | None
    """The form of the inputs of the last call; the explainer has it, and the two below."""

    @abstractmethod
    def _prepare(
        self, inputs: tuple[Any, ...], named: dict[str, Any], target: Any
    ) -> tuple[Plan, list[Tensor], Tensor | None]:
        """The plan for inputs, and the inputs and target as it takes them."""

    @abstractmethod
    def _is_half(self, tensors: list[Tensor]) -> bool:
        """Whether values of half precision may come up."""

    def save(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Save the explanation as a file that runs without the model's Python code; :func:`fxlrp.load` reads it.

        It holds the program, as ``torch.export`` writes it down, and the weights as they are now. The batch
        stays free; other axes are those of the examples. The result is checked against this explainer.

        Args:
            path: the file; its name ends in .pt2.
            example_inputs: what the model takes: a tensor, a tuple of positional or a dict of keyword
                arguments; ``None``: inputs like those of the last call.

        Raises:
            ExportError: it cannot be exported, or nothing says what the inputs look like.
            InputError: an example does not fit the model.
        """
        from fxlrp.exports.saved import save

        return save(cast("Explainer", self), path, example_inputs)

    def export_aot(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Compile the explanation ahead of time, by AOTInductor, into a package without Python.

        :func:`fxlrp.load` reads it, and so does ``torch::inductor::AOTIModelPackageLoader`` of C++. It runs
        on the kind of device that it was compiled on. Arguments are those of :meth:`save`.

        Raises:
            ExportError, InputError: as for :meth:`save`.
            BackendError: Inductor cannot compile here.
        """
        from fxlrp.exports.saved import package

        return package(cast("Explainer", self), path, example_inputs)

    def export_onnx(self, path: str | os.PathLike[str], example_inputs: Any = None) -> Path:
        """Write the explanation as ONNX, and check it in onnxruntime.

        Its inputs are the model's, by name, and ``target``, (batch,) of int64, where -1 asks for the predicted
        class; its outputs are ``relevance``, ``output``, ``explained_class``, ``start``, ``checkpoint.NAME``.
        The batch is a free axis. Arguments are those of :meth:`save`; the name of the file ends in .onnx.

        Raises:
            ExportError, InputError: as for :meth:`save`.
            MissingExtraError: onnx, onnxscript or onnxruntime is not installed (extra ``onnx``).
        """
        from fxlrp.exports.onnx import export_onnx

        return export_onnx(cast("Explainer", self), path, example_inputs)

    def _example(self, example_inputs: Any) -> tuple[Plan, list[Tensor], bool]:
        """The plan for example inputs, these or some like the last ones, and whether they are of half precision."""
        if example_inputs is None:
            if self._last is None:
                raise ExportError(
                    "nothing says what the inputs look like: call the explainer once before, or give example_inputs="
                )
            plan, forms = self._last
            tensors = [_filled(form, spec) for form, spec in zip(forms, plan.inputs, strict=True)]
        else:
            plan, tensors, _ = self._prepare(*arguments_of(example_inputs), None)
        return plan, tensors, self._is_half(tensors)


def _filled(form: tuple[Any, ...], spec: InputSpec) -> Tensor:
    """An input of a form: noise, or numbers that an embedding has."""
    shape, dtype, device = form
    if spec.integer:
        return torch.ones(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
