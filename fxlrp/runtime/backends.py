"""Backends: what runs a program, torch step by step or compiled by ``torch.compile``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.common.errors import BackendError
from fxlrp.common.tensors import Watch, tensor_at, tensor_names, watchable
from fxlrp.passes.facts import has_facts
from fxlrp.passes.optimize.derived import Derived

EAGER, INDUCTOR, CUDAGRAPHS = "eager", "inductor", "cudagraphs"

Run = Callable[..., Any]
"""A program as a function of inputs and target."""


class Backend(ABC):
    """Base of the backends.

    Attributes:
        name: as ``compile(backend=…)`` takes it.
        about: what it does.
        compiles: whether it runs compiled code, of a single explanation alone.
    """

    name: str
    about: str
    compiles = True

    def check(self) -> None:  # noqa: B027, because most run anywhere
        """Raise where this backend cannot run on this machine.

        Raises:
            BackendError: it cannot.
        """

    @abstractmethod
    def runner(self, module: fx.GraphModule, *, autocast: bool) -> Run:
        """What runs a program.

        Args:
            module: the program.
            autocast: whether ``torch.autocast`` is on.

        Raises:
            BackendError: it cannot run this way.
        """

    def forget(self, module: fx.GraphModule) -> None:  # noqa: B027, because most keep nothing
        """Keep nothing of a program that is used no more."""

    def raise_for(self, error: RuntimeError) -> None:  # noqa: B027, because most have no errors of their own
        """Raise :class:`BackendError` where an error is one of this backend, and not of the inputs."""


class Eager(Backend):
    """torch, step by step."""

    name, about, compiles = EAGER, "torch, step by step", False

    def runner(self, module: fx.GraphModule, *, autocast: bool) -> Run:
        return FullPrecisionRelevance(module).run if autocast else module


class Inductor(Backend):
    """Programs that Inductor compiles at their first call."""

    name = INDUCTOR
    about = "compiled by Inductor at the first call; on the CPU with the weights packed into it"
    graphs = False

    def __init__(self) -> None:
        self._compiled: dict[int, Compiled] = {}

    def runner(self, module: fx.GraphModule, *, autocast: bool) -> Run:
        if autocast:
            raise BackendError(
                f"backend={self.name!r} does not run under torch.autocast: convert the explainer, by .to(dtype), "
                "or compile it with backend='eager'"
            )
        return self._compiled.setdefault(id(module), Compiled(module, cuda_graphs=self.graphs))

    def forget(self, module: fx.GraphModule) -> None:
        self._compiled.pop(id(module), None)

    def raise_for(self, error: RuntimeError) -> None:
        from torch._dynamo.exc import TorchDynamoException

        if isinstance(error, TorchDynamoException):
            raise BackendError(f"backend={self.name!r} cannot compile this explanation: {error}") from error


class CudaGraphs(Inductor):
    """The same, captured as CUDA graphs."""

    name, about, graphs = CUDAGRAPHS, "compiled by Inductor and captured as CUDA graphs", True

    def check(self) -> None:
        if not torch.cuda.is_available():
            raise BackendError(
                f"backend={self.name!r} needs a CUDA device, and torch finds none; 'inductor' runs anywhere"
            )


BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in (Eager, Inductor, CudaGraphs)}
"""What ``compile(backend=…)`` can be asked for."""


def backend_named(name: str | None) -> Backend:
    """A new backend of this name; ``None``: the eager one.

    Raises:
        BackendError: there is none of this name, or it cannot run here.
    """
    wanted = Eager.name if name is None else name
    if not isinstance(wanted, str) or wanted not in BACKENDS:
        raise BackendError(f"backend={name!r}: choose one of {', '.join(map(repr, BACKENDS))}")
    backend = BACKENDS[wanted]()
    backend.check()
    return backend


class FullPrecisionRelevance(fx.Interpreter):
    """Runs a program under autocast: the model's own nodes as they are, relevance in full precision."""

    def run_node(self, n: fx.Node) -> Any:
        if has_facts(n):
            return super().run_node(n)
        with torch.autocast(self.device, enabled=False):
            return super().run_node(n)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        self.extra_traceback = False  # an error of a rule or a start is raised as it is
        return super().run(*args, **kwargs)


class Compiled:
    """A program that ``torch.compile`` compiles when it is first called, and again for inputs of another form.

    On the CPU, where relevance is not differentiated, weights below float64 are frozen: what is made of
    them is computed once and laid out for the processor. Where they were written to since, the program
    is compiled anew.

    Args:
        module: maps inputs and target to a dict.
        cuda_graphs: whether to capture CUDA graphs.
    """

    def __init__(self, module: fx.GraphModule, *, cuda_graphs: bool) -> None:
        self.module = module
        self.cuda_graphs = cuda_graphs
        self._frozen: tuple[Watch, Run] | None = None
        self._plain: Run | None = None
        parts = [module, *(child.program for child in module.children() if isinstance(child, Derived))]
        self._tensors = [(part, name) for part in parts for name in tensor_names(part.graph)]

    def __call__(self, *args: Any) -> Any:
        """What the program gives.

        Raises:
            BackendError: it cannot be compiled here.
        """
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if self.cuda_graphs and device != "cuda":
            raise BackendError(f"backend='cudagraphs' runs on CUDA devices, and the input is on {device}")
        weights = [tensor_at(part, name) for part, name in self._tensors]
        # Inductor lays out weights by oneDNN, which has no float64 and does not say so.
        lays_out = all(weight.dtype != torch.float64 for weight in weights)
        freeze = device == "cpu" and not torch.is_grad_enabled() and lays_out and watchable(weights)
        run = self._freeze(weights) if freeze else self._compile()
        with freezing(freeze):
            results = run(*args)
        # What a captured graph returns is overwritten by its next run.
        return pytree.tree_map_only(Tensor, torch.clone, results) if self.cuda_graphs else results

    def _freeze(self, weights: list[Tensor]) -> Run:
        if self._frozen is None or not self._frozen[0].unchanged(weights):
            # A copy has code of its own, by which torch.compile knows what it compiled.
            self._frozen = Watch(weights), torch.compile(copy.copy(self.module), fullgraph=True)
        return self._frozen[1]

    def _compile(self) -> Run:
        if self._plain is None:
            options: Any = {"triton.cudagraphs": True} if self.cuda_graphs else None
            self._plain = torch.compile(self.module, fullgraph=True, options=options)
        return self._plain


@contextmanager
def freezing(freeze: bool) -> Iterator[None]:
    """What Inductor compiles meanwhile has its weights packed into it, or not."""
    import torch._inductor.config as config  # slow to import, so only where it is used

    with config.patch(freezing=freeze):  # type: ignore[attr-defined,unused-ignore]
        yield
