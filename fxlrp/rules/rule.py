"""What a rule is, and what it returns.

A rule is an object that is called with tensors (or with torch.fx proxies, which emits
its graph) and returns :class:`Shares`. It holds parameters and no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fxlrp.steps.primitives import fit
from fxlrp.vocabulary.operation import Kind

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


Ask = Callable[[str], Any]
"""What a node offers to its rule, by name; :class:`fxlrp.passes.site.Site` lists the names."""


class Rule(ABC):
    """Base of all rules: equal and printed by their parameters, all of which have defaults.

    A direct subclass is a *family*: it says which operations it is for, and what it needs to know.

    Attributes:
        kinds: the kinds of operation that the family is for.
        operations: the operations that it is for, by name, such as ``"softmax"``.
        needs: what :meth:`__call__` takes beside relevance, by keyword: names of what a node offers,
            or of arguments of the operation, such as ``"dim"``.
        keeps_sign: whether relevance that is nowhere negative stays so.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()
    operations: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    keeps_sign: bool = False

    @classmethod
    def fits(cls, kind: Kind, operation: str = "") -> bool:
        """Whether the family is for operations of this kind, or for the one of this name."""
        return kind in cls.kinds or operation in cls.operations

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Shares:
        """Share relevance out; each family of rules says over what."""

    def at(self, relevance: Any, ask: Ask) -> Shares:
        """Share ``relevance`` of a node out over its operands; a family may call its rules in its own way.

        Args:
            relevance: what the node received; pairs of index and relevance where it is several tensors.
            ask: gives what the node offers under a name.
        """
        shares = self(relevance, **{name: ask(name) for name in self.needs})
        return fitted(shares, ask) if ask("broadcasts") else shares

    def check_channels(self, channels: int) -> None:  # noqa: B027, most rules fit any operand
        """Raise :class:`RuleError` where the rule does not fit an operand of so many channels."""

    def __repr__(self) -> str:
        usual = vars(type(self)())  # what differs from the defaults is worth reading
        changed = [f"{name}={value!r}" for name, value in vars(self).items() if value != usual[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


def fitted(shares: Shares, ask: Ask, positions: Sequence[int] | None = None) -> Shares:
    """The shares in the shapes of their operands, which may have been broadcast.

    Args:
        shares: one share per operand.
        ask: gives what the node offers under a name.
        positions: the operand that each share belongs to; ``None``: they are in order.
    """
    order = positions or range(len(shares.operands))
    shares.operands = [
        share if share is None else fit(share, ask("shape_of")(position))
        for share, position in zip(shares.operands, order, strict=True)
    ]
    return shares


def given(names: Sequence[str], ask: Ask) -> dict[str, Any]:
    """What a node offers under some names, by name; left out where it has none, so that defaults stand."""
    offered = {name: ask(name) for name in names}
    return {name: value for name, value in offered.items() if value is not None}


def added(amounts: Sequence[Any]) -> Any:
    """The sum, from the first on."""
    total = amounts[0]
    for amount in amounts[1:]:
        total = total + amount
    return total


def families(kind: Kind, operation: str = "") -> list[type[Rule]]:
    """The families of rules for operations of this kind, and for the one of this name."""
    return [family for family in Rule.__subclasses__() if kind in family.kinds or operation in family.operations]


class Pass(Rule):
    """Relevance passes unchanged to the one operand, as through an activation (Bach et al., PLOS ONE 2015)."""

    kinds = (Kind.POINTWISE, Kind.NORMALISATION)
    keeps_sign = True

    def __call__(self, relevance: Tensor) -> Shares:
        return Shares([relevance])
