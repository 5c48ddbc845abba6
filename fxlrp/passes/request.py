"""What one call wants of an explanation, and what its program gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, fx

from fxlrp.passes.conditions import Point
from fxlrp.passes.watchers.ledger import LedgerHead


@dataclass(frozen=True)
class Request:
    """A wish of one call, as far as the emitted program depends on it; the key of the program cache.

    A new wish is one field here and one watcher (:mod:`fxlrp.passes.watchers`).

    Attributes:
        targets: ``"one"`` target per item, or ``"several"``, whose explanations share what does not depend
            on the target.
        against: whether the target is explained against classes that the call names.
        ledger: whether to keep the account of every node.
        conditions: names of the modules at whose output relevance is masked.
        checkpoints: names of the modules at whose input relevance is wanted.
        nodes: names of the forward nodes whose relevance is wanted.
        precision: ``"uniform"``, or ``"mixed"`` where forward values may be of several precisions or of half:
            relevance then has the precision of the output, but at least float32. ``"products"``: the same, and layers
            multiply in bfloat16 where their weights are.
        optimizations: names out of :data:`fxlrp.passes.optimize.NAMES`; ``None``: as ``compile`` was asked.
    """

    targets: Literal["one", "several"] = "one"
    against: bool = False
    ledger: bool = False
    conditions: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    precision: Literal["uniform", "mixed", "products"] = "uniform"
    optimizations: tuple[str, ...] | None = None

    @property
    def watched(self) -> bool:
        """Whether more is wanted of the sweep than relevance where modules begin and end."""
        return self.ledger or bool(self.nodes)


class Results(NamedTuple):
    """What a program computes; its graph returns a dict with these keys.

    Attributes:
        relevance: one tensor per input, like the input.
        output: what the model returns, flattened.
        target: (batch,), the explained class of each item; ``None`` where the start needs none.
        start: (batch,), the relevance that entered.
        checkpoints: by module name, the relevance at the module's input.
        nodes: by node name, the relevance of the node's value.
        ledger: per row, the amounts that :class:`~fxlrp.passes.watchers.ledger.LedgerWatcher` computes.
    """

    relevance: list[Any]
    output: list[Any]
    target: Tensor | None
    start: Tensor
    checkpoints: dict[str, Any] = {}  # noqa: RUF012, nobody writes to the defaults of a tuple
    nodes: dict[str, Any] = {}  # noqa: RUF012
    ledger: list[Any] = []  # noqa: RUF012

    def present(self) -> dict[str, Any]:
        """As a dict, without the nodes and the ledger where none were requested."""
        return {name: value for name, value in self._asdict().items() if name not in ("nodes", "ledger") or value}


@dataclass
class Program:
    """An emitted graph.

    Its graph module maps ``(*inputs, target)`` to a dict with the keys of :class:`Results`. Where several
    targets were requested, the arguments are ``(*inputs, targets, number)``: targets are (targets, batch), and
    the target of this number is explained. Mapped over ``number`` by ``torch.vmap``, what does not depend
    on it is computed once. Then follow the rivals, (batch, rivals), where they were requested; and with conditions
    one mask per entry of ``points``.

    Attributes:
        module: the graph module.
        forward: the forward graph that it was emitted from.
        ledger_heads: what is known of each ledger row before the graph runs.
        points: where conditions are applied.
        output_axis: which axis of the explained output is the batch; ``None``: its rows are no items.
    """

    module: fx.GraphModule
    forward: fx.GraphModule
    ledger_heads: list[LedgerHead] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    output_axis: int | None = 0
