"""What no explanation can be of, found in the captured graph: randomness, and complex outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.common.errors import CaptureError
from fxlrp.passes.facts import Origin
from fxlrp.vocabulary.complex_values import ComplexPair

_RANDOM = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal",
    "normal_functional", "uniform", "multinomial", "poisson", "exponential", "geometric", "cauchy", "log_normal",
    "random", "gumbel_softmax",
})  # fmt: skip
"""Functions and methods that draw random numbers, without the underscore of those that write in place."""


def check_fixed(node: fx.Node, origin: Origin) -> None:
    """Raise where a node that the output needs draws random numbers.

    Raises:
        CaptureError: it does.
    """
    if node.op not in ("call_function", "call_method"):
        return
    name = called(node)
    if name.rstrip("_") in _RANDOM:
        raise CaptureError(
            f"the output is random in eval mode: forward() draws numbers by {name}(){where(origin)}. An explanation is "
            "of one function; draw only in training mode, or give the numbers as an input"
        )


def check_real_output(value: Any) -> None:
    """Raise where what is to be explained is complex.

    Raises:
        CaptureError: it is.
    """
    if isinstance(value, ComplexPair):
        raise CaptureError(
            "the model returns complex values, and relevance is of a real one: say with output= which, such as "
            "output=lambda output: output.abs()"
        )


def called(node: fx.Node) -> str:
    """What a node calls, for a message."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(target if node.op == "call_method" else getattr(target, "__name__", target))


def where(origin: Origin) -> str:
    """`` in 'layer.0' (file:line)``, as far as it is known."""
    return (f" in {origin.path!r}" if origin.path else "") + (f" ({origin.source})" if origin.source else "")
