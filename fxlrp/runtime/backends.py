"""Backends: what runs a program, torch step by step or compiled by ``torch.compile``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.common.errors import BackendError
from fxlrp.common.tensors import Watch, tensor_at, tensor_names, watchable
from fxlrp.passes.optimize.derived import Derived

EAGER, INDUCTOR, CUDAGRAPHS = "eager", "inductor", "cudagraphs"

BACKENDS: dict[str, str] = {
    EAGER: "torch, step by step",
    INDUCTOR: "compiled by Inductor at the first call; on the CPU with the weights packed into it",
    CUDAGRAPHS: "compiled by Inductor and captured as CUDA graphs",
}
"""What ``compile(backend=…)`` can be asked for."""


def check_backend(name: str | None) -> str:
    """The backend of this name; ``None``: the eager one.

    Raises:
        BackendError: there is none of this name, or it cannot run here.
    """
    if name is None:
        return EAGER
    if name not in BACKENDS:
        raise BackendError(f"backend={name!r}: choose one of {', '.join(map(repr, BACKENDS))}")
    if name == CUDAGRAPHS and not torch.cuda.is_available():
        raise BackendError(f"backend={name!r} needs a CUDA device, and torch finds none; 'inductor' runs anywhere")
    return name


class Compiled:
    """A program that ``torch.compile`` compiles when it is first called, and again for inputs of another form.

    On the CPU, where relevance is not differentiated, weights below float64 are frozen: what is made of
    them is computed once and laid out for the processor. Where they were written to since, the program
    is compiled anew.

    Args:
        module: maps inputs and target to a dict.
        backend: ``"inductor"`` or ``"cudagraphs"``.
    """

    def __init__(self, module: fx.GraphModule, backend: str) -> None:
        self.module = module
        self.graphs = backend == CUDAGRAPHS
        self._frozen: tuple[Watch, Callable[..., Any]] | None = None
        self._plain: Callable[..., Any] | None = None
        parts = [module, *(child.program for child in module.children() if isinstance(child, Derived))]
        self._places = [(part, name) for part in parts for name in tensor_names(part.graph)]

    def __call__(self, *args: Any) -> Any:
        """What the program gives.

        Raises:
            BackendError: it cannot be compiled here.
        """
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if self.graphs and device != "cuda":
            raise BackendError(f"backend='cudagraphs' runs on CUDA devices, and the input is on {device}")
        weights = [tensor_at(part, name) for part, name in self._places]
        # Inductor lays out weights by oneDNN, which has no float64 and does not say so.
        lays_out = all(weight.dtype != torch.float64 for weight in weights)
        freeze = device == "cpu" and not torch.is_grad_enabled() and lays_out and watchable(weights)
        run = self._freeze(weights) if freeze else self._compile()
        with freezing(freeze):
            results = run(*args)
        # What a captured graph returns is overwritten by its next run.
        return pytree.tree_map_only(Tensor, torch.clone, results) if self.graphs else results

    def _freeze(self, weights: list[Tensor]) -> Callable[..., Any]:
        if self._frozen is None or not self._frozen[0].unchanged(weights):
            # A copy has code of its own, by which torch.compile knows what it compiled.
            self._frozen = Watch(weights), torch.compile(copy.copy(self.module), fullgraph=True)
        return self._frozen[1]

    def _compile(self) -> Callable[..., Any]:
        if self._plain is None:
            options: Any = {"triton.cudagraphs": True} if self.graphs else None
            self._plain = torch.compile(self.module, fullgraph=True, options=options)
        return self._plain


@contextmanager
def freezing(freeze: bool) -> Iterator[None]:
    """What Inductor compiles meanwhile has its weights packed into it, or not."""
    import torch._inductor.config as config  # slow to import, so only where it is used

    with config.patch(freezing=freeze):  # type: ignore[attr-defined,unused-ignore]
        yield


def raise_for(error: RuntimeError, backend: str) -> None:
    """Raise :class:`BackendError` where an error is one of compiling."""
    from torch._dynamo.exc import TorchDynamoException

    if isinstance(error, TorchDynamoException):
        raise BackendError(f"backend={backend!r} cannot compile this explanation: {error}") from error
