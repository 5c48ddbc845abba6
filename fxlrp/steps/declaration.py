"""What is known of a step, declared where the step is defined.

A *step* is a function that a rule calls, and so a node of the program that rules write. What the
passes must know of it (is it linear, is its result memory of its own, …) is one :class:`StepFacts`.
Steps of fxlrp declare it in ``@primitive(…)``, functions of torch in :mod:`fxlrp.steps.torch_functions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args, overload

from torch import fx

P = ParamSpec("P")
T = TypeVar("T")
Step = TypeVar("Step", bound=Callable[..., Any])

Linear = Literal["first", "jointly", "either", "none"]
"""In which of its arguments a step is linear.

``"first"``: in the first one, a tensor or several; the others do not depend on relevance.
``"jointly"``: in all of them together, as a sum is.
``"either"``: in any one of them, as a product is.
``"none"``: the result does not depend on relevance, which is asked for its shape alone.
"""

Along = Callable[..., Any]
"""How a step that is not linear in relevance acts on a part of it: called as the step is, with the
part's relevance, and with ``whole``, the arguments of the step for all of the relevance."""


@dataclass(frozen=True)
class InPlace:
    """The form of a step that writes its result into an operand, and else returns what the step does.

    Attributes:
        step: the function.
        orders: orders of the step's first arguments to call it with.
        writes: the arguments, in that order, that it writes into.
        spare: one that it may write into besides, told by ``spare=True``, where nobody reads that again either.
    """

    step: Callable[..., Any]
    orders: tuple[tuple[int, ...], ...] = ((0,),)
    writes: tuple[int, ...] = (0,)
    spare: int | None = None


@dataclass(frozen=True)
class StepFacts:
    """What is known of a step; what is not declared is assumed not to hold.

    Attributes:
        linear: in which arguments it is linear in relevance; ``None``: not declared.
        along: how it acts on a part of the relevance, where it is not linear.
        fresh: whether its result, or each of its results, is memory of its own.
        several: whether it returns several tensors.
        reads: whether it keeps no hold of the memory of its arguments; a fresh result implies it.
        writes_into: its form that writes into an operand that nobody reads afterwards.
    """

    linear: Linear | None = None
    along: Along | None = None
    fresh: bool = False
    several: bool = False
    reads: bool = False
    writes_into: InPlace | None = None

    def __post_init__(self) -> None:
        if self.linear is not None and self.linear not in get_args(Linear):
            raise ValueError(f"linear={self.linear!r}: choose one of {', '.join(map(repr, get_args(Linear)))}")
        if self.fresh and not self.reads:
            object.__setattr__(self, "reads", True)


_UNKNOWN = StepFacts()
_OF_OTHERS: dict[Any, StepFacts] = {}


def facts_of(target: Any, arguments: Sequence[Any] = ()) -> StepFacts:
    """What is declared of a step.

    Args:
        target: a function, or the name of a method of tensors.
        arguments: of the call; what ``getattr`` does depends on the attribute.
    """
    attribute = (getattr, *arguments[1:2]) if target is getattr else None
    if attribute in _OF_OTHERS:
        return _OF_OTHERS[attribute]
    own: StepFacts | None = getattr(target, "__dict__", {}).get("step_facts")
    return own or _OF_OTHERS.get(target, _UNKNOWN)


def declare(targets: Iterable[Any], **declared: Any) -> None:
    """Declare what is known of functions that are no primitives; it is added to what was known.

    Args:
        targets: functions, names of methods of tensors, or ``(getattr, name)`` of their attributes.
        declared: as :class:`StepFacts` has it.
    """
    for target in targets:
        _OF_OTHERS[target] = replace(facts_of(target), **declared)


def along(step: Callable[..., object]) -> Callable[[Step], Step]:
    """Say how ``step`` is made linear at the relevance of the whole explanation, see :data:`Along`."""

    def register(part: Step) -> Step:
        if hasattr(step, "step_facts"):
            step.step_facts = replace(step.step_facts, along=part)
        else:
            declare([step], along=part)
        return part

    return register


@overload
def primitive(function: Callable[P, T]) -> Callable[P, T]: ...


@overload
def primitive(
    *, linear: Linear | None = None, fresh: bool = False, several: bool = False, reads: bool = False,
    writes_into: InPlace | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...  # fmt: skip


def primitive(function: Callable[..., Any] | None = None, **declared: Any) -> Any:
    """Let a function record itself as a node where an argument is a torch.fx proxy.

    Args:
        function: the function.
        declared: what is known of it, as :class:`StepFacts` has it.
    """
    step_facts = StepFacts(**declared)

    def recorded(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            proxy = _first_proxy(args)
            if proxy is None and kwargs:
                proxy = _first_proxy(kwargs.values())
            if proxy is None:
                return function(*args, **kwargs)
            return cast(T, proxy.tracer.create_proxy("call_function", call, args, dict(kwargs)))

        vars(call)["step_facts"] = step_facts
        return call

    return recorded if function is None else recorded(function)


def _first_proxy(values: Iterable[object]) -> fx.Proxy | None:
    for value in values:  # one loop and no call for each, since every step of a program comes through here
        if isinstance(value, fx.Proxy):
            return value
        if isinstance(value, tuple | list):
            proxy = _first_proxy(value)
            if proxy is not None:
                return proxy
    return None
