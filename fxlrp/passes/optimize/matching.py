"""Patterns of emitted steps: what an optimiser pass looks for, written as the calls themselves.

``Step(divide, relevance=Step(convolution_transpose, s=Capture("s"), groups=1))`` matches a node that calls
``divide`` on the result of ``convolution_transpose`` with ``groups=1``, and captures its argument ``s``.
Arguments have the names of the function's own parameters, whether a node has them by position or by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Captures = dict[str, Any]

aten = torch.ops.aten

_SCHEMAS: dict[Any, Any] = {
    F.conv1d: aten.conv1d.default, F.conv2d: aten.conv2d.default, F.conv3d: aten.conv3d.default,
    F.linear: aten.linear.default, torch.matmul: aten.matmul.default,
}  # fmt: skip
"""Functions whose parameters Python cannot tell, and the operators that have the same."""

_PARAMETERS: dict[Any, tuple[str, ...]] = {getattr: ("object", "name")}
"""Functions whose parameters nothing tells."""


@dataclass(frozen=True)
class Capture:
    """Matches anything that ``test`` accepts, and captures it under ``name``."""

    name: str
    test: Callable[[Any], bool] = lambda value: True

    def match(self, value: Any) -> Captures | None:
        """What was captured; ``None`` where ``value`` does not match."""
        return {self.name: value} if self.test(value) else None


class Step:
    """Matches a node that calls one of ``targets`` with arguments that match, and captures it under ``name``.

    Args:
        *targets: functions.
        name: what the node itself is captured under; ``""``: not at all.
        **arguments: by parameter, a pattern or a value; parameters that are not named may be anything.
    """

    def __init__(self, /, *targets: Callable[..., Any], name: str = "", **arguments: Any) -> None:
        self.targets = targets
        self.name = name
        self.arguments = arguments
        for target in targets:
            unknown = arguments.keys() - set(_parameters(target)[0])
            if unknown:
                raise ValueError(f"{target} has no parameter {', '.join(sorted(unknown))}")

    def match(self, value: Any) -> Captures | None:
        """What was captured; ``None`` where ``value`` does not match."""
        if not isinstance(value, fx.Node) or value.target not in self.targets:
            return None
        given = arguments_of(value)
        captures: Captures = {self.name: value} if self.name else {}
        for parameter, pattern in self.arguments.items():
            found = _match(pattern, given[parameter])
            if found is None:
                return None
            captures |= found
        return captures


def _match(pattern: Any, value: Any) -> Captures | None:
    if isinstance(pattern, Capture | Step):
        return pattern.match(value)
    return {} if pattern is value or (type(pattern) is type(value) and pattern == value) else None


def arguments_of(node: fx.Node) -> Captures:
    """The arguments of a call by parameter, defaults included."""
    names, defaults = _parameters(node.target)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


@cache
def _parameters(target: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    schema = getattr(_SCHEMAS.get(target, target), "_schema", None)
    if schema is not None:
        names = tuple(argument.name for argument in schema.arguments)
        return names, {argument.name: argument.default_value for argument in schema.arguments}
    if target in _PARAMETERS:
        return _PARAMETERS[target], {}
    parameters = inspect.signature(target).parameters.values()
    return tuple(p.name for p in parameters), {p.name: None if p.default is p.empty else p.default for p in parameters}
