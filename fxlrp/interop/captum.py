"""The face of Captum's attribution methods, so that an explainer can stand where one of them does.

Captum itself is not needed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Integral
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fxlrp.common.errors import InputError, TargetError
from fxlrp.results.explanation import Explanation
from fxlrp.steps.batch_axis import item_sum

F = TypeVar("F", bound=Callable[..., Any])


def _wrapped(method: F) -> F:
    # NoiseTunnel calls method.__wrapped__, for Captum's own methods are wrapped in one that logs their use.
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call  # type: ignore[return-value]


class Explains(Protocol):
    """What explains inputs: an explainer, or a saved one."""

    def explain(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any] | None = None, *, target: Any = None
    ) -> Explanation:
        """An explanation of inputs by position and by name, no target among them."""


@_wrapped
def attribute(
    self: Explains, inputs: Any, target: Any = None, additional_forward_args: Any = None, *,
    return_convergence_delta: bool = False,
) -> Any:  # fmt: skip
    """Relevance, as ``captum.attr.Attribution.attribute`` gives attributions.

    Args:
        self: the explainer; this is a method of it.
        inputs: a tensor (batch, ...) or a tuple of them, the model's first arguments.
        target: the class to explain: ``None`` (the predicted one; also for a start that needs no
            class), an int or a tensor of one element for all items, a list or a tensor (batch,) with
            one per item. In a ``NoiseTunnel`` ``None`` is the class predicted for each noisy input;
            :func:`fxlrp.smooth` keeps that of the clean one.
        additional_forward_args: the model's further arguments, one value or a tuple of them, which
            get no attribution back. What is no tensor is passed on as it is.
        return_convergence_delta: whether to return delta too.

    Returns:
        Relevance like ``inputs``, a tuple for a tuple; for an input of tokens that of their
        embeddings, (batch, tokens, features). With delta, a tuple of that and delta, (batch,): the
        relevance that entered less what arrived at ``inputs``, so what was absorbed or went to
        further arguments.

    Raises:
        InputError, TargetError, CaptureError: as for a call of the explainer.
    """
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    if not several or not all(isinstance(value, Tensor) for value in several):
        kinds = ", ".join(type(value).__name__ for value in several)
        raise InputError(
            f"inputs= takes a tensor or a tuple of tensors, not {kinds or 'an empty tuple'}; "
            "what else the model takes goes into additional_forward_args="
        )
    arguments = (*several, *further_arguments(additional_forward_args))
    explanation = self.explain(arguments, target=one_per_item(target))
    relevance = tuple(explanation.by_input.values())[: len(several)]
    found = relevance if isinstance(inputs, tuple) else relevance[0]
    if not return_convergence_delta:
        return found
    by_item = explanation.by_item
    arrived = torch.stack([item_sum(value) for value in list(by_item.by_input.values())[: len(several)]]).sum(dim=0)
    return found, (by_item.start.double() - arrived).to(by_item.start.dtype)


def further_arguments(additional_forward_args: Any) -> tuple[Any, ...]:
    """Captum's ``additional_forward_args`` as a tuple: none, one value, or the tuple itself."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def one_per_item(target: Any) -> Any:
    """A target as Captum understands it, as the explainer takes it: a list or tensor has one class per item.

    Raises:
        TargetError: it is a list of something else, a tensor of more axes, or a tuple.
    """
    if isinstance(target, list):
        if not all(isinstance(number, Integral | Tensor) and not isinstance(number, bool) for number in target):
            raise TargetError(f"a list of targets holds one class number per item, not {target!r}")
        return torch.tensor([int(number) for number in target], dtype=torch.long)
    if isinstance(target, tuple):
        raise TargetError(
            f"target={target!r} is a place in an output of several axes: say what to explain with "
            "compile(start=…), a callable (output, target) -> relevance of the output"
        )
    if isinstance(target, Tensor):
        if target.numel() == 1:
            return target.reshape(())
        if target.dim() != 1:
            raise TargetError(f"a target tensor has one class per item, shape (batch,), not {tuple(target.shape)}")
    return target
