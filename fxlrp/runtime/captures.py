"""What was read of a model: each graph once, for whoever compiles the model."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture import Call, Captured, Snapshot, as_module, check_model, export, trace, unwrapped, with_output
from fxlrp.common.items import FRONT, Items
from fxlrp.runtime import capture_files

MOST_CAPTURES = 16
"""How many graphs of a model are kept; the oldest goes first."""
READERS: list[Callable[[Any], Any]] = []
"""What reads a model out of a file that is named in place of one, and hands all else on: rooms above this one do."""


class CapturedModel:
    """A model and the graphs that were read of it, to be given to :func:`fxlrp.compile` in place of the model.

    Reading a large model takes most of the time of a first explanation. What is compiled of one captured model, with
    whichever preset, rules, start or output, reads it once. A model that was changed since is read again.

    Args:
        model: a module in eval mode, an exported program, or the path of an .onnx file. It is not changed.
        output: which of its outputs to explain, as :func:`fxlrp.compile` takes it.
        shared: whether several explainers are compiled of it.

    Attributes:
        given: the model as it was given, as a module.
        output: as above.
        reads: how often ``torch.export`` read the model.
    """

    def __init__(self, model: Any, output: Any = None, *, shared: bool = True) -> None:
        for read in READERS:
            model = read(model)
        self.given: nn.Module = as_module(model)
        self.output = output
        self.reads = 0
        self._snapshot = Snapshot(self.given) if shared and isinstance(self.given, nn.Module) else None
        self._lock = threading.RLock()
        self._kept: list[tuple[Any, Captured]] = []

    def __repr__(self) -> str:
        return f"CapturedModel({type(self.given).__name__}, graphs={len(self._kept)})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what was read of the model to a file, without its weights: :meth:`load` reads it back.

        An ``output`` that is a function is not written, nor a graph that only holds for some values of integers, of
        which ``forward()`` asked.

        Args:
            path: the file. It is written completely or not at all.

        Raises:
            ExportError: the file cannot be written, or the graph holds what no file can.
        """
        with self._lock:
            self._follow()
            return capture_files.save(path, self.model, self.output, self._kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, output: Any = None) -> CapturedModel:
        """The capture in a file, for the model that it was read of.

        A file is data, of which no code is run. That it still fits the model, whose code may have changed, the first
        call of what is compiled of it shows.

        Args:
            path: what :meth:`save` wrote.
            model: the model, in eval mode, its weights as they may be, or the path of its .onnx file. It is not
                changed.
            output: which of its outputs to explain; ``None``: the one that was saved.

        Raises:
            ExportError: the file is no capture, it is damaged, or it is of another model.
            TrainingModeError, CaptureError: the model cannot be captured as it is.
        """
        captured = cls(model, output)
        check_model(captured.model)
        saved, captured._kept = capture_files.load(path, captured.model)
        if output is None and not isinstance(saved, capture_files.UnsavedOutput):
            captured.output = saved
        return captured

    @property
    def model(self) -> nn.Module:
        """The model inside of what only runs it elsewhere or faster."""
        return unwrapped(self.given)

    def traced(self, output: Any, items: Items = FRONT) -> Captured:
        """The graph that symbolic tracing reads.

        Raises:
            CaptureError: it cannot follow the model.
        """
        with self._lock:
            self._follow()
            key = ("symbolic", items), output
            for known, captured in self._kept:
                if known == key:
                    return captured
            found = trace(self.model, output)
            found.items = items
            self._keep(key, found)
            return found

    def exported(
        self, call: Call, tensors: Sequence[Tensor], output: Any, *, dtype: torch.dtype | None, fixed: bool
    ) -> Captured:  # fmt: skip
        """The graph that ``torch.export`` reads of a call.

        Args:
            call: how the model is called.
            tensors: the example inputs.
            output: which output to explain.
            dtype: the floating point type to read the model in; ``None``: its own.
            fixed: whether to read it for these sizes alone.

        Raises:
            CaptureError: the model cannot be exported.
        """
        with self._lock:
            self._follow()
            key = ("export", call.key, dtype, fixed), output
            alike = [kept for kept in self._kept if kept[0][0] == key[0] and _fits(kept[1], call, tensors)]
            for known, captured in alike:
                if known == key:
                    return captured
            for _, captured in alike[:1]:  # it holds all that the model returns
                if (other := with_output(captured, output)) is not None:
                    self._keep(key, other)
                    return other
            check_model(self.model)
            read = self.model if dtype is None else copy.deepcopy(self.model).to(dtype)
            self.reads += 1
            found = export(read, call, tensors, output, fixed=fixed)
            found.model = self.model
            self._keep(key, found)
            return found

    def forget(self) -> None:
        """Keep nothing: the model was changed."""
        with self._lock:
            self._kept.clear()
            if self._snapshot is not None:
                self._snapshot = Snapshot(self.given)

    def _follow(self) -> None:
        if self._snapshot is not None and self._snapshot.change():
            self.forget()

    def _keep(self, key: Any, captured: Captured) -> None:
        if self._snapshot is not None:  # an explainer of its own keeps what it needs
            self._kept.append((key, captured))
            del self._kept[:-MOST_CAPTURES]


def _fits(captured: Captured, call: Call, tensors: Sequence[Tensor]) -> bool:
    """Whether a graph serves tensors of these shapes."""
    for name, tensor in zip(call.graph_names, tensors, strict=True):
        shape = captured.shapes.get(name)
        if shape is None or len(shape) != tensor.dim():
            return False
        if any(isinstance(size, int) and size != own for size, own in zip(shape, tensor.shape, strict=True)):
            return False
    return captured.serves(tensors)
