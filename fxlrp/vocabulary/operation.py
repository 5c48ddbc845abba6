"""What the vocabulary says of one operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import fx, nn

SHAPE = "fxlrp shape"
"""Where a node of the canonical graph keeps the shape that the capture knew of a value without signal."""

_PICTURES = re.compile("[23]d")

Arguments = dict[str, Any]
"""The arguments of a call by their schema names, defaults filled in; tensors may be proxies."""


class Kind(str, Enum):
    """What relevance does at an operation."""

    INPUT = "input"
    LINEAR = "linear"
    ROUTING = "routing"
    POINTWISE = "pointwise"
    NORMALISATION = "normalisation"
    JOIN = "join"
    GATE = "gate"
    PRODUCT = "product"
    SELECTION = "selection"
    RECURRENT = "recurrent"
    CONSTANT = "constant"

    def __str__(self) -> str:
        return self.value


class Sign(Enum):
    """The sign of a result."""

    ANY = "any"
    NONNEGATIVE = "non-negative"
    KEEPS = "non-negative where every operand is"


class Bound(Enum):
    """Whether a result is bounded, and so may be a gate."""

    NONE = 0
    CLIPPED = 1
    """An activation that clips, such as ReLU6: a gate where the other factor is no better one."""
    REDUCED = 2
    """A statistic of the signal, broadcast over it again, as a norm computes it."""
    SQUASHED = 3
    """Squashed to both signs, as by tanh: a gate, but what is let through where a sigmoid is the other factor."""
    GATE = 4
    """A squashing function that is nearly always a gate, such as the sigmoid."""
    KEEPS = 5
    """Bounded where every operand is."""


def known_shape(value: Any) -> tuple[Any, ...] | None:
    """The shape of a constant: of a parameter or buffer, or of what export computed; ``None``: it is not known."""
    shape = getattr(getattr(value, "node", None), "meta", {}).get(SHAPE, getattr(value, "shape", None))
    return tuple(shape) if isinstance(shape, tuple) else None


def per_axis(value: Any, dims: int) -> list[Any]:
    """One entry per axis from an int, a sequence of one, or a sequence."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * dims if len(values) == 1 else values


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: its canonical spelling, its other spellings, and what relevance does there.

    Attributes:
        target: the canonical spelling, a functional ATen overload.
        kind: what relevance does where one operand carries signal.
        several: its kind where two or more operands do; ``None``: the same.
        operands: the schema names of the arguments that can carry signal.
        functions, methods: other spellings; their in-place forms are understood.
        aten: other ATen overloads, and how each is lowered to the canonical call; ``None``:
            it takes the same arguments. An operation that a package brings when it is imported goes by its name.
        lower: from the Python signature of the spellings to the canonical call. ``None``:
            they take the same arguments as ``target``, and ``input`` for ``self``.
        bind: for a linear operation or a product ``(arguments, operand name) ->
            (LinearOperation, weight, bias)``, for a selection ``arguments -> pool``.
        values: for a product, the operand that holds the values, the others being weights;
            ``None``: it is told by the facts about the operands.
        transpose: for routing: ``(relevance, arguments) ->`` relevance of the operand, or
            a list of one for each operand;
            ``arguments["output"]`` is the moved value itself.
        outputs_many: the result is a list of tensors.
        chooses: of that list the first one holds what was chosen; the others hold places, which carry no signal.
        sign, bound: facts about the result; they may depend on the arguments.
        batch: ``(position, arguments) -> position`` of the batch in the result, as
            :mod:`fxlrp.steps.batch_axis` has it; ``None``: where it was.
        channels: where the channels are in the result, a function of :mod:`fxlrp.vocabulary.channel_moves`;
            ``None``: where they were, counted from behind.
        input_channels: for a layer ``(shape of its weight, arguments) ->`` how many channels, or features, it takes.
        cuts: routing that keeps a part of a value: another part is not the same value.
        pads: routing that puts constants around a value.
        loses: routing that puts constants in the place of some elements; or ``(relevance, arguments) ->`` what these
            get, where the value is of another shape than its operand.
        parametric: it counts as a layer where branches are compared; it may depend on the arguments.
        activates: it is an activation, such as a ReLU.
    """

    target: Any
    kind: Kind
    several: Kind | None = None
    operands: tuple[str, ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    aten: Mapping[Any, Callable[..., Any] | None] = field(default_factory=dict)
    lower: Callable[..., Any] | None = None
    bind: Callable[..., Any] | None = None
    values: str | None = None
    transpose: Callable[..., Any] | None = None
    outputs_many: bool = False
    chooses: bool = False
    sign: Sign | Callable[[Arguments], Sign] = Sign.ANY
    bound: Bound | Callable[[Arguments], Bound] = Bound.NONE
    batch: Callable[[Any, Arguments], Any] | None = None
    channels: Callable[[int | None, Arguments, Sequence[int], Sequence[int]], int | None] | None = None
    input_channels: Callable[[Sequence[int], Arguments], int] | None = None
    cuts: bool = False
    pads: bool = False
    loses: bool | Callable[[Any, Arguments], Any] = False
    parametric: bool | Callable[[Arguments], bool] = False
    activates: bool = False

    @property
    def name(self) -> str:
        """The short name, such as ``"conv2d"``."""
        return str(self.target).split(".")[1]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, transposed or not."""
        return self.name.startswith("conv")

    @property
    def sees_pictures(self) -> bool:
        """Whether it looks along two axes of space or more, as convolutions and pools of pictures and volumes do."""
        return _PICTURES.search(self.name) is not None

    def operand_names(self) -> tuple[str, ...]:
        """The schema names of the arguments that can carry signal: by default the first."""
        return self.operands or (self.target._schema.arguments[0].name,)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The canonical call for a call in any other spelling."""
        if self.lower is not None:
            return self.lower(*args, **kwargs)
        kwargs.pop("inplace", None)
        names = [argument.name for argument in self.target._schema.arguments]
        if "input" in kwargs and names[0] == "self":
            args = (kwargs.pop("input"), *args)
        strange = [name for name in kwargs if name not in names]
        if strange or len(args) > len(names):
            raise Unsupported(f"more than {self.target} takes: {', '.join(strange) or args[len(names):]}")
        return self.target(*args, **kwargs)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a canonical call by name, with the schema's defaults."""
        values: Arguments = {}
        for position, argument in enumerate(self.target._schema.arguments):
            if position < len(args):
                values[argument.name] = args[position]
            else:
                values[argument.name] = kwargs.get(argument.name, argument.default_value)
        return values


@dataclass(frozen=True, eq=False)
class Composed:
    """A function that is no operation of its own: a call of it becomes calls of several operations.

    Attributes:
        lower: from its Python signature to the canonical calls.
        functions, methods: its spellings; the in-place forms of the methods are understood.
        aten: the ATen overloads, and how each is lowered; ``None``: by ``lower``.
    """

    lower: Callable[..., Any]
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    aten: Mapping[Any, Callable[..., Any] | None] = field(default_factory=dict)


class Vocabulary:
    """All operations that are known, found by any of their spellings."""

    def __init__(self) -> None:
        self._by_target: dict[Any, Operation] = {}
        self._by_function: dict[Any, Operation] = {}
        self._by_method: dict[str, Operation] = {}
        self._by_module: dict[type[nn.Module], Callable[..., Any]] = {}
        self._by_overload: dict[Any, Callable[..., Any]] = {}
        self._spelled: dict[Any, Operation] = {}
        self._composed_functions: dict[Any, Callable[..., Any]] = {}
        self._composed_methods: dict[str, Callable[..., Any]] = {}

    def register(self, operation: Operation) -> Operation:
        """Add ``operation``, or replace what had one of its spellings."""
        self._by_target[operation.target] = operation
        self._by_overload[operation.target] = operation.target
        for overload, lower in operation.aten.items():
            self._by_overload[overload] = lower or operation.target
        self._spelled.update(dict.fromkeys((operation.target, *operation.aten), operation))
        for function in operation.functions:
            self._by_function[function] = operation
        for method in operation.methods:
            self._by_method[method] = operation
        return operation

    def compose(self, composed: Composed) -> Composed:
        """Add a function that is made of operations, or replace what had one of its spellings."""
        self._composed_functions.update(dict.fromkeys(composed.functions, composed.lower))
        self._composed_methods.update(dict.fromkeys(composed.methods, composed.lower))
        self._by_overload.update({overload: lower or composed.lower for overload, lower in composed.aten.items()})
        return composed

    def composed_method(self, name: str) -> Callable[..., Any] | None:
        """How a tensor method that is no operation of its own is lowered."""
        return self._composed_methods.get(name)

    def composed_function(self, function: Any) -> Callable[..., Any] | None:
        """How a function that is no operation of its own is lowered."""
        return self._composed_functions.get(function)

    def register_module(self, module: type[nn.Module], lower: Callable[..., Any]) -> None:
        """Say how a module that tracing cannot open is lowered: ``lower(module, *inputs)``."""
        self._by_module[module] = lower

    def canonical(self, target: Any) -> Operation | None:
        """The operation whose canonical target this is."""
        return self._by_target.get(target)

    def called_by(self, value: Any) -> Operation | None:
        """The operation that a node of the canonical graph calls; ``None`` for any other node or value."""
        is_call = isinstance(value, fx.Node) and value.op == "call_function"
        return self.canonical(value.target) if is_call else None

    def overload(self, overload: Any) -> Callable[..., Any] | None:
        """How a call of this overload is lowered, its arguments being those of its schema."""
        return self._by_overload.get(overload) or self._by_overload.get(str(overload))

    def spelled(self, overload: Any) -> Operation | None:
        """The operation that this overload spells."""
        return self._spelled.get(overload) or self._spelled.get(str(overload))

    def function(self, function: Any) -> Operation | None:
        """The operation that this function spells."""
        return self._by_function.get(function) or self._by_target.get(function)

    def method(self, name: str) -> Operation | None:
        """The operation that this tensor method spells."""
        return self._by_method.get(name)

    def named(self, name: str) -> Operation | None:
        """The operation of this short name, such as ``"hardtanh"``."""
        return next((operation for operation in self.operations() if operation.name == name), None)

    def module(self, module: type[nn.Module]) -> Callable[..., Any] | None:
        """How this module type is lowered, or the type that it has its ``forward`` from."""
        for parent in module.__mro__:
            # A subclass with a forward of its own (batch norm with activation) means something else.
            if parent in self._by_module and getattr(module, "forward", None) is getattr(parent, "forward", None):
                return self._by_module[parent]
        return None

    def operations(self) -> list[Operation]:
        """Every operation once."""
        return list(dict.fromkeys(self._by_target.values()))


class Unsupported(Exception):
    """Raised by a lowering that knows the operation, but not in this form.

    Attributes:
        final: whether another way of capture would not help.
    """

    def __init__(self, reason: str = "", *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final
