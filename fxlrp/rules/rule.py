"""What a rule is, and what it returns.

A rule is an object that is called with tensors (or with torch.fx proxies, which emits
its graph) and returns :class:`Shares`. It holds parameters and no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

STABILIZER = "stabilizer"
BIAS = "bias"
CONSTANT = "constant"
PADDING = "padding"
GRADIENT = "gradient"
CONDITION = "condition"

REASONS = (STABILIZER, BIAS, CONSTANT, PADDING)
"""Why rules that conserve may absorb relevance; the ledger has one total for each."""

Amount = Callable[[], Tensor | list[Tensor]]
"""Relevance that was not simply handed on, in one tensor or several, the batch being where the
node's own relevance has it; computed only where a ledger is kept."""


@dataclass
class Shares:
    """Relevance for each operand of a node, in order, and what was not handed on.

    ``None`` in ``operands`` means: this operand receives nothing. Rules that do not conserve name in
    ``rest`` the reason under which the ledger tells what is neither handed on nor absorbed.
    """

    operands: list[Tensor | None]
    absorbed: dict[str, Amount] = field(default_factory=dict)
    rescaled: Amount | None = None
    rest: str | None = None

    @property
    def only(self) -> Tensor:
        """The share of the one operand."""
        (share,) = self.operands
        assert share is not None
        return share


class Rule(ABC):
    """Base of all rules: equal and printed by their parameters, all of which have defaults."""

    keeps_sign: bool = False
    """Whether relevance that is nowhere negative stays so."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Shares:
        """Share relevance out; each family of rules says over what."""

    def __repr__(self) -> str:
        usual = vars(type(self)())  # what differs from the defaults is worth reading
        changed = [f"{name}={value!r}" for name, value in vars(self).items() if value != usual[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


class Pass(Rule):
    """Relevance passes unchanged to the one operand, as through an activation (Bach et al., PLOS ONE 2015)."""

    keeps_sign = True

    def __call__(self, relevance: Tensor) -> Shares:
        return Shares([relevance])
