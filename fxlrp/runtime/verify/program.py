"""Whether the program that was emitted computes what the model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxlrp.common.errors import PropagationError
from fxlrp.runtime.verify.distance import distance, last_digit

_ENLARGED = 30
"""By so much more than the root of a last digit a deep network may enlarge what is rounded in another order."""
_MOST = 0.5


def check_program(ours: Sequence[Any], theirs: Sequence[Any], model: str) -> None:
    """Raise where a program returns something else than the model, for the same inputs.

    The graph was compared before, to a few last digits. This sees what may go wrong behind it: an input or a weight in
    the place of another one.

    Args:
        ours: what the program returns, flattened.
        theirs: the same of the model.
        model: its name.

    Raises:
        PropagationError: they differ by more than rounding.
    """
    for number, (mine, wanted) in enumerate(zip(ours, theirs, strict=False)):
        if not (isinstance(mine, Tensor) and isinstance(wanted, Tensor) and last_digit(wanted)):
            continue
        allowed = min(_MOST, _ENLARGED * max(last_digit(mine), last_digit(wanted)) ** 0.5)
        if mine.shape != wanted.shape or not distance(mine, wanted) <= allowed:
            raise PropagationError(
                f"output {number} of the program that was made of {model} is not the model's: a fault of fxlrp, "
                "and nothing was explained; please report the model"
            )
