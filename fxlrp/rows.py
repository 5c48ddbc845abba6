"""Rows: many explanations of the same inputs in one run.

The program is written for one row. ``torch.vmap`` runs it for all, and whatever depends on no
row, the forward pass and the denominators of the rules above all, it computes once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import InputError, RuleError

Results = dict[str, Any]


def check_chunk(chunk: Any) -> None:
    """Raise where ``chunk`` is no number of rows."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk= is how many rows to compute at once, a whole number of at least 1, not {chunk!r}")


def run_rows(
    program: Callable[..., Results], inputs: Sequence[Tensor], targets: Tensor, chunk: int | None = None
) -> Results:
    """Run a program for rows.

    Args:
        program: maps ``(*inputs, targets, row)`` to results.
        inputs: what every row shares.
        targets: (rows, batch), the class of each row and item.
        chunk: how many rows to compute at once, which bounds the memory; each chunk computes what
            its rows share anew. ``None``: all of them.

    Returns:
        As the program, with an axis of rows behind the batch; ``output`` as ever.

    Raises:
        RuleError: a rule or a start does what cannot be done for many rows at once.
    """

    def results(*arguments: Any) -> Results:
        return {**program(*arguments)}  # what an interpreter returns is no plain dict

    parts = []
    for some in torch.split(targets, chunk or len(targets)):
        numbers = torch.arange(len(some), device=some.device)
        mapped = torch.vmap(results, in_dims=(*(None for _ in inputs), None, 0), out_dims=_BEHIND_THE_BATCH)
        try:
            parts.append(mapped(*inputs, some, numbers))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise RuleError(
                f"this cannot be computed for several rows at once; explain them one by one: {error}"
            ) from error
    return parts[0] if len(parts) == 1 else _joined(parts)


_BEHIND_THE_BATCH: Any = {"relevance": 1, "output": None, "target": 1, "start": 1, "checkpoints": 1}


def _joined(parts: list[Results]) -> Results:
    rows = [{key: value for key, value in part.items() if key != "output"} for part in parts]
    joined = pytree.tree_map(lambda *values: torch.cat(values, dim=1), *rows)
    return {**joined, "output": parts[0]["output"]}
