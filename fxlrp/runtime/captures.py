"""What was read of a model: each graph once, for whoever compiles the model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture import Call, Captured, Snapshot, as_module, check_model, export, trace, unwrapped, with_output
from fxlrp.common.items import FRONT, Items

MOST_CAPTURES = 16
"""How many graphs of a model are kept; the oldest goes first."""


class CapturedModel:
    """A model and the graphs that were read of it, to be given to :func:`fxlrp.compile` in place of the model.

    Reading a large model takes most of the time of a first explanation. What is compiled of one captured model, with
    whichever preset, rules, start or output, reads it once. A model that was changed since is read again.

    Args:
        model: a module in eval mode, or an exported program. It is not changed.
        output: which of its outputs to explain, as :func:`fxlrp.compile` takes it.
        shared: whether several explainers are compiled of it.

    Attributes:
        given: the model as it was given, as a module.
        output: as above.
    """

    def __init__(self, model: Any, output: Any = None, *, shared: bool = True) -> None:
        self.given: nn.Module = as_module(model)
        self.output = output
        self._snapshot = Snapshot(self.given) if shared and isinstance(self.given, nn.Module) else None
        self._lock = threading.RLock()
        self._kept: list[tuple[Any, Captured]] = []

    def __repr__(self) -> str:
        return f"CapturedModel({type(self.given).__name__}, graphs={len(self._kept)})"

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
