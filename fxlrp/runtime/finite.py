"""Whether what was computed consists of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import NonFiniteError
from fxlrp.passes.request import Results


def check_finite(results: Results) -> None:
    """Raise where nothing was explained: the output or the relevance is NaN or infinite.

    An output may be −∞ where relevance does not start, as masked classes are.

    Args:
        results: of a program.

    Raises:
        NonFiniteError: so it is.
    """
    for output in results.output:
        if _is_floating(output) and bool((output.isnan() | (output == torch.inf)).any()):
            raise NonFiniteError(
                "the output of the model holds NaN or infinity: its weights have diverged, or values in it overflow; "
                "an explanation would mean nothing"
            )
    if not bool(results.start.isfinite().all()):
        raise NonFiniteError("the relevance that enters is NaN or infinite; choose another start or target")
    for relevance in results.relevance:
        if _is_floating(relevance) and not bool(relevance.isfinite().all()):
            raise NonFiniteError(
                "the relevance holds NaN or infinity: a denominator vanishes or overflows under this preset; "
                "explainer.ledger(...) shows at which node, and .to(torch.float64) may do"
            )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
