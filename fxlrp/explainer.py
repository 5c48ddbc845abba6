"""The explainer: inputs in, relevance out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.inputs import InputSpec, check_inputs, check_target, output_shape
from fxlrp.ledger import Ledger, build_ledger
from fxlrp.passes.emit import Program
from fxlrp.passes.joins import Join
from fxlrp.rules.primitives import item_sum
from fxlrp.weights import Weights


@dataclass(frozen=True)
class Explanation:
    """Relevance, and what it explains.

    Attributes:
        relevance: like the input, (batch, ...); a tuple of them for several inputs.
        output: what the model returns.
        target: (batch,), the explained class of each item; ``None`` where a callable start
            was given no target.
        start: (batch,), the relevance that entered at the output.
        checkpoints: by module name, the relevance at the module's input; a tuple where
            the module takes several values.
    """

    relevance: Any
    output: Any
    target: Tensor | None
    start: Tensor
    checkpoints: dict[str, Any]


class Explainer(nn.Module):
    """A compiled explanation, made by :func:`fxlrp.compile`.

    It uses the model's own tensors and follows their updates; it never changes the model.
    ``.to(...)`` gives it converted copies, which follow the model too.

    Attributes:
        graph_module: the whole computation, a plain ``torch.fx.GraphModule`` that maps
            ``(*inputs, target)`` to a dict.
        joins: the adds where a skip and a residual branch meet.
        differentiable: whether an explanation keeps its autograd graph.
    """

    graph_module: fx.GraphModule

    def __init__(
        self, model: nn.Module, program: Program, forward_graph: fx.GraphModule, output: fx.Node, *,
        inputs: list[InputSpec], joins: list[Join], ledger_program: Callable[[], Program], differentiable: bool,
        recompile: Callable[[nn.Module], Explainer],
    ) -> None:
        super().__init__()
        self.graph_module = program.module
        self.joins = joins
        self.differentiable = differentiable
        self._inputs = inputs
        self._weights = Weights(model, program.module)
        # In a tuple, for nn.Module would register a module as a part of this one.
        self._forward = (forward_graph, output)
        self._ledger_program = ledger_program
        self._ledger: tuple[Program, ...] = ()
        self._classes: int | None = None
        self._recompile = recompile

    def forward(self, *inputs: Tensor, target: Any = None) -> Explanation:
        """Explain ``inputs``; a target may also follow them as the last positional argument.

        Args:
            inputs: what the model takes, (batch, ...).
            target: the class to explain: ``None`` (the predicted one), an int, or an integer
                tensor (batch,).

        Raises:
            InputError: an input does not fit the model.
            TargetError: the target is no class of the model.
        """
        results = self._run(self.graph_module, *self._prepare(inputs, target))
        relevance = results["relevance"]
        return Explanation(
            relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
            output=results["output"],
            target=results["target"],
            start=results["start"],
            checkpoints=results["checkpoints"],
        )

    def ledger(self, *inputs: Tensor, target: Any = None) -> Ledger:
        """What every node received, handed on and absorbed, for the same arguments as an explanation.

        Raises:
            InputError, TargetError: as for an explanation.
        """
        prepared = self._prepare(inputs, target)
        if not self._ledger:
            program = self._ledger_program()
            self._weights.add(program.module)
            self._weights.refresh()
            self._ledger = (program,)
        (program,) = self._ledger
        results = self._run(program.module, *prepared)
        arrived = torch.stack([item_sum(r) for r in results["relevance"]]).sum(dim=0)
        return build_ledger(program.rows, results["ledger"], results["start"].double(), arrived)

    @property
    def graph(self) -> fx.Graph:
        """The graph of :attr:`graph_module`."""
        return self.graph_module.graph

    @property
    def code(self) -> str:
        """The Python code that runs, with a comment where a node's relevance begins."""
        from fxlrp.code import commented

        return commented(self.graph_module)

    @property
    def dot(self) -> str:
        """The picture as DOT text, the language of Graphviz; needs neither Graphviz nor its package."""
        from fxlrp.draw import dot_source

        return dot_source(self)

    def draw(self, path: str | os.PathLike[str], view: str = "both", *, depth: int | None = None) -> Path:
        """Draw the forward graph, the rules beside it and the way of relevance; return the file's path.

        Args:
            path: the file; its suffix says what to write: svg, png, pdf, or dot or gv for DOT text.
            view: ``"both"``, ``"forward"`` or ``"relevance"``.
            depth: draw modules at this depth as one box each; ``None``: everything.

        Raises:
            DrawError: it cannot be drawn as asked, or Graphviz is missing.
            MissingExtraError: the package ``graphviz`` is not installed.
        """
        from fxlrp.draw import draw

        return draw(self, path, view, depth=depth)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, by copy.deepcopy or pickle, is compiled anew from the copied model.
        return _rebuild, (self._recompile, self._weights.model, self._weights.dtype, self._weights.device)

    def _prepare(self, inputs: tuple[Any, ...], target: Any) -> tuple[list[Tensor], Tensor | None]:
        if target is None and len(inputs) == len(self._inputs) + 1:
            *inputs, target = inputs  # type: ignore[assignment]
        if not torch.compiler.is_compiling():
            self._weights.refresh()
        check_inputs(self._inputs, inputs, self._weights.example())
        first = inputs[0]
        classes = self._class_count(inputs) if target is not None else None
        return list(inputs), check_target(target, first.shape[0], classes, first.device)

    def _class_count(self, inputs: tuple[Any, ...]) -> int | None:
        """How many classes the output has, ``None`` where it is not (batch, classes)."""
        if self._classes is None:
            shape = output_shape(*self._forward, inputs)
            self._classes = shape[1] if len(shape) == 2 else -1
        return self._classes if self._classes >= 0 else None

    def _run(self, module: fx.GraphModule, inputs: list[Tensor], target: Tensor | None) -> dict[str, Any]:
        try:
            with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
                results: dict[str, Any] = module(*inputs, target)
        except RuntimeError:
            # Shapes that the model cannot take: say which layer, instead of which kernel.
            if not torch.compiler.is_compiling():
                output_shape(*self._forward, inputs)
            raise
        return results

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Explainer:
        # nn.Module would convert the tensors in place, and they are the model's.
        self._weights.convert(fn)
        self._weights.refresh()
        return self


def _rebuild(
    recompile: Callable[[nn.Module], Explainer], model: nn.Module, dtype: torch.dtype | None, device: Any
) -> Explainer:
    explainer = recompile(model)
    return explainer if dtype is None and device is None else explainer.to(device=device, dtype=dtype)
