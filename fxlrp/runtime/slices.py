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

from fxlrp.common.errors import InputError, RuleError

Results = dict[str, Any]


def check_chunk(chunk: Any) -> None:
    """Raise where ``chunk`` is no number of rows."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk= is how many rows to compute at once, a whole number of at least 1, not {chunk!r}")


def run_rows(
    program: Callable[..., Results], inputs: Sequence[Tensor], target: Tensor | None, masks: Sequence[Tensor],
    count: int, chunk: int | None = None,
) -> Results:
    """Run a program for many rows.

    Args:
        program: maps ``(*inputs, target, *masks)`` to results; for targets that differ
            ``(*inputs, targets, row, *masks)``.
        inputs: what every row shares.
        target: (batch, rows); or (batch,), or ``None``, shared as well.
        masks: each (rows, ...); or (1, ...), shared.
        count: how many rows there are.
        chunk: how many of them to compute at once, which bounds the memory; each chunk computes
            what its rows share anew. ``None``: all.

    Returns:
        As the program, with an axis of rows behind the batch; ``output`` as ever.

    Raises:
        RuleError: a rule does what cannot be done for many rows at once.
    """
    several = target is not None and target.dim() == 2
    shared = [None] * (len(inputs) + 1)
    out_dims: Any = {"relevance": 1, "output": None, "target": 1 if several else None, "start": 1, "checkpoints": 1}

    def results(*arguments: Any) -> Results:
        return {**program(*arguments)}  # what an interpreter returns is no plain dict

    parts = []
    for numbers in torch.split(torch.arange(count, device=inputs[0].device), chunk or count):
        some = [mask.expand(count, *mask.shape[1:])[numbers] for mask in masks]
        classes = [target] if target is None or not several else [target.T[numbers], numbers - numbers[0]]
        in_dims = (*shared, *[0] * (len(classes) - 1 + len(some)))
        try:
            parts.append(torch.vmap(results, in_dims=in_dims, out_dims=out_dims)(*inputs, *classes, *some))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise RuleError(
                f"this cannot be computed for several rows at once; explain them one by one: {error}"
            ) from error
    joined = parts[0] if len(parts) == 1 else _joined(parts)
    if not several and joined["target"] is not None:
        joined["target"] = parts[0]["target"].unsqueeze(1).expand(-1, count)
    return joined


def _joined(parts: list[Results]) -> Results:
    rows = [{key: part[key] for key in ("relevance", "start", "checkpoints")} for part in parts]
    joined = pytree.tree_map(lambda *values: torch.cat(values, dim=1), *rows)
    targets = [part["target"] for part in parts]
    return {
        **joined, "output": parts[0]["output"],
        "target": torch.cat(targets, dim=1) if targets[0] is not None and targets[0].dim() == 2 else targets[0],
    }  # fmt: skip
