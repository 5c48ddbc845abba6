"""What a node offers to its rule, by the names that rules ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from torch import fx

from fxlrp.common.errors import RuleError
from fxlrp.passes.facts import facts, operation_of
from fxlrp.passes.layers import with_norms
from fxlrp.passes.values import Values
from fxlrp.rules.linear import LinearRule
from fxlrp.rules.rule import Shares, given
from fxlrp.steps.batch_axis import BatchAxis, rows_of
from fxlrp.steps.derivative import vector_jacobian
from fxlrp.steps.precision import InBfloat16
from fxlrp.vocabulary import Arguments, Bound, Kind
from fxlrp.vocabulary.attention import attention_of


class Site:
    """A node as its rule sees it: every public property is one thing that the rule may ask for.

    What is asked for is emitted then, once; nothing else is. Beside the properties the arguments of
    the operation can be asked for, by their schema names.

    Args:
        values: the forward values.
        node: a forward node that carries signal.
        signed: whether the relevance that it received may be negative.
    """

    def __init__(self, values: Values, node: fx.Node, *, signed: bool) -> None:
        self._values = values
        self._node = node
        self._facts = facts(node)
        self._signed = signed

    def __call__(self, name: str) -> Any:
        """What is offered under ``name``.

        Raises:
            RuleError: nothing is.
        """
        if name in OFFERED:
            return getattr(self, name)
        if name in self._arguments:
            return self._arguments[name]
        rule, operation = type(self._facts.rule).__name__, operation_of(self._facts).name
        raise RuleError(
            f"{rule} needs {name!r}, which {operation} at {self._node} does not offer: ask for one of "
            f"{', '.join(OFFERED)}, or of its arguments {', '.join(self._arguments)}"
        )

    # Of every node ------------------------------------------------------------------------------

    @cached_property
    def x(self) -> Any:
        """The value of the first operand; of a linear operation with a norm before it in it, what that norm reads."""
        return self._values.value(self._operand)

    @cached_property
    def output(self) -> Any:
        """The value of the node; of a linear operation where it is at hand, with a norm behind it that norm's."""
        if self._facts.kind is not Kind.LINEAR:
            return self._values.value(self._node)
        if self._values.outputs and not self.operation.held:
            return self._values.value(self._facts.norm_behind or self._node)
        return None

    @cached_property
    def signed(self) -> bool:
        """Whether the relevance that the node received may be negative."""
        return self._signed

    @cached_property
    def nonnegative(self) -> bool:
        """Whether ``x`` is known to have no negative element."""
        return facts(self._operand).nonnegative and self._values.signs

    @cached_property
    def support(self) -> Any:
        """Ones where ``x`` carries signal and zeros in padding; ``None``: signal everywhere."""
        return self._values.support(self._operand)

    @cached_property
    def filled(self) -> bool:
        """Whether padding in ``x`` may hold other values than zero."""
        return facts(self._operand).filled

    @cached_property
    def batch_axis(self) -> BatchAxis | None:
        """Where the batch is in ``x``; ``None``: in front."""
        return self._axis(self._operand)

    @cached_property
    def received_batch_axis(self) -> BatchAxis | None:
        """Where the batch is in the relevance that the node received; ``None``: in front."""
        return self._axis(self._node)

    def _axis(self, node: fx.Node) -> Any:
        """Where what belongs together is in a value.

        Where all inputs are one item, a layer that maps rows, such as the nodes of a graph, each by itself keeps in
        each row what is missing there: graphs side by side do not share it.
        """
        operation, positions = self._facts.operation, self._values.positions
        by_rows = operation is not None and (operation.name == "linear" or operation.is_convolution)
        return rows_of(self._values.value(node)) if positions.whole and by_rows else positions.batch_axis(node)

    @cached_property
    def broadcasts(self) -> bool:
        """Whether the result may have more elements than an operand, which was broadcast."""
        several = self._facts.kind is Kind.POINTWISE and len(self._node.all_input_nodes) > 1
        return several or self._facts.kind in (Kind.JOIN, Kind.GATE)

    @cached_property
    def shape_of(self) -> Callable[[int], Any]:
        """The shape of the operand at a position."""
        return lambda position: self._values.value(self._facts.operands[position][1]).shape

    @cached_property
    def derivative(self) -> Callable[[Any], list[Any]]:
        """The transposed derivative of the operation: relevance to one tensor per operand."""
        if self._facts.kind is Kind.LINEAR:
            ((name, operand),) = self._facts.operands
            operation, weight, _ = self._bind(name)
            if not operation.held:
                return lambda r: [operation.transpose(r, weight, self._values.value(operand))]
        operands = [self._values.value(operand) for _, operand in self._facts.operands]

        def back(r: Any) -> list[Any]:
            gradients: Any = vector_jacobian(r, self._node.target, *self._values.call(self._node), operands)
            return [gradients[i] for i in range(len(operands))]

        return back

    @cached_property
    def bound(self) -> Any:
        """The call as the vocabulary binds it: the pool of a selection, the call of a recurrent layer."""
        return self._bind(self._facts.operands[0][0])

    # Of linear operations, with the norms that are folded into them -----------------------------

    @cached_property
    def operation(self) -> Any:
        """The linear operation, without its weights."""
        return self._layer[0]

    @cached_property
    def weight(self) -> Any:
        """Its weights; ``None`` where it has none."""
        return self._layer[1]

    @cached_property
    def bias(self) -> Any:
        """Its bias, in a shape that adds to the output, or ``None``."""
        return self._layer[2]

    # Of normalisations --------------------------------------------------------------------------

    @cached_property
    def transpose(self) -> Callable[[Any], Any]:
        """The transpose of a norm, its deviation held constant."""
        bind = operation_of(self._facts).bind
        assert bind is not None
        bound: Callable[[Any], Any] = bind(self._arguments, self.x)
        return bound

    # Of joins -----------------------------------------------------------------------------------

    @cached_property
    def skip_position(self) -> int:
        """Which operand is the skip; the other one is the residual."""
        names = [operand.name for _, operand in self._facts.operands]
        return names.index(self._facts.join.skip)

    @cached_property
    def skip(self) -> Any:
        """The value of the skip."""
        return self._values.value(self._branch(0))

    @cached_property
    def residual(self) -> Any:
        """The value of the residual branch."""
        return self._values.value(self._branch(1))

    @cached_property
    def skip_support(self) -> Any:
        """Ones where the skip carries signal; ``None``: everywhere."""
        return self._values.support(self._branch(0))

    @cached_property
    def residual_support(self) -> Any:
        """The same of the residual branch."""
        return self._values.support(self._branch(1))

    @cached_property
    def subtracts(self) -> bool:
        """Whether the second operand is subtracted."""
        return operation_of(self._facts).name == "sub"

    # Of gates -----------------------------------------------------------------------------------

    @cached_property
    def gate(self) -> int | None:
        """The position of the operand that is the gate; ``None`` where neither can be told to be one."""
        return self._facts.gate

    @cached_property
    def statistic(self) -> bool:
        """Whether the gate is a statistic of the signal."""
        gate = None if self.gate is None else facts(self._facts.operands[self.gate][1])
        return gate is not None and gate.bound is Bound.REDUCED

    # Of products --------------------------------------------------------------------------------

    @cached_property
    def factors(self) -> list[Callable[[LinearRule, Any], Shares]]:
        """For each factor a function that shares relevance out over it by a linear rule, the others held constant."""
        return [partial(self._factor, index) for index in range(len(self._facts.operands))]

    @cached_property
    def values(self) -> int | None:
        """The position of the factor that holds the values; ``None`` where that cannot be told."""
        return self._facts.values

    @cached_property
    def values_operand(self) -> str | None:
        """The name of the operand that always holds the values, the others being weights; ``None``: it depends."""
        return operation_of(self._facts).values

    @cached_property
    def attention(self) -> Any:
        """All operands of an attention."""
        return attention_of(self._arguments)

    @cached_property
    def carries(self) -> list[bool]:
        """For each operand that the operation can have, whether it carries signal; for a list, each of its entries."""
        signal = dict(self._facts.operands)
        found = []
        for name in operation_of(self._facts).operand_names():
            value = self._arguments[name]
            entries = [f"{name}[{i}]" for i in range(len(value))] if isinstance(value, list | tuple) else [name]
            found += [entry in signal for entry in entries]
        return found

    # ---------------------------------------------------------------------------------------------

    @cached_property
    def _arguments(self) -> Arguments:
        return self._values.arguments(self._node)

    @cached_property
    def _operand(self) -> fx.Node:
        node_facts = self._facts if self._facts.norm_before is None else facts(self._facts.norm_before)
        return node_facts.operands[0][1]

    def _branch(self, index: int) -> fx.Node:
        """The skip, and the residual branch."""
        return self._facts.operands[abs(index - self.skip_position)][1]

    def _bind(self, operand: str) -> Any:
        """What the vocabulary makes of the call for one operand."""
        bind = operation_of(self._facts).bind
        assert bind is not None
        return bind(self._values.arguments(self._node), operand)

    @cached_property
    def _layer(self) -> tuple[Any, Any, Any]:
        layer = with_norms(self._values, self._facts, self._bind(self._facts.operands[0][0]), self.x)
        return layer if not self._values.narrow else self._in_bfloat16(*layer)

    def _in_bfloat16(self, operation: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """A layer that multiplies by its weights as they are stored; one with a norm in it has none that are stored."""
        written = operation_of(self._facts).arguments(self._node.args, self._node.kwargs).get("weight")
        normed = self._facts.norm_before is not None or self._facts.norm_behind is not None
        if normed or not self._facts.parametric or not isinstance(written, fx.Node):
            return operation, weight, bias
        return InBfloat16(operation), self._values.stored(written), bias

    def _factor(self, index: int, rule: LinearRule, relevance: Any) -> Shares:
        node_facts = self._facts
        name, operand = node_facts.operands[index]
        operation, weight, bias = self._bind(name)
        bias = None if bias is None else operation.broadcast_bias(bias)
        others = [facts(o) for i, (_, o) in enumerate(node_facts.operands) if i != index]
        offered = given(rule.needs, _FactorSite(self._values, self._node, operand, signed=self._signed))
        offered["weight_nonnegative"] = name == "value" or (len(others) == 1 and others[0].nonnegative)
        return rule(operation, self._values.value(operand), weight, bias, relevance, **offered)


class _FactorSite(Site):
    """One factor of a product as a linear rule sees it."""

    def __init__(self, values: Values, node: fx.Node, operand: fx.Node, *, signed: bool) -> None:
        super().__init__(values, node, signed=signed)
        self._factor_operand = operand

    @cached_property
    def output(self) -> None:
        """Of the whole product, not of this factor: never at hand."""

    @cached_property
    def _operand(self) -> fx.Node:
        return self._factor_operand


OFFERED = tuple(name for name, value in vars(Site).items() if isinstance(value, cached_property) and name[0] != "_")
"""What every node offers, as far as it is of the kind."""
