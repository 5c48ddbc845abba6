"""Methods of one's own, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fxlrp.common.errors import MethodError
from fxlrp.evaluation.methods.base import Attribution, Explain
from fxlrp.loading.models import import_callable


def imported(
    model: nn.Module, example: Tensor, checkpoints: tuple[str, ...], *, function: str,
    options: Mapping[str, Any] | None = None,
) -> Explain:  # fmt: skip
    """A method of one's own: ``package.module:function``.

    The function takes the model and ``options``, and returns a function from inputs, (batch, channels, height,
    width), and classes, (batch,), to maps, (batch, height, width).
    """
    made = import_callable(function)(model, **(options or {}))

    def explain(inputs: Tensor, targets: Tensor) -> Attribution:
        maps = made(inputs, targets)
        expected = (len(inputs), *inputs.shape[-2:])
        if not isinstance(maps, Tensor) or maps.shape != expected:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise MethodError(f"{function} must give maps {expected}, not {got}")
        return Attribution(maps.detach())

    return explain
