"""Slices: several explanations of the same inputs in one run, one per target or condition.

The program is written for one slice. ``torch.vmap`` runs it for all. What depends on no slice, such as the
forward pass and the denominators of the rules, is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.errors import InputError, PatternError, RuleError
from fxlrp.passes.request import Results


def check_chunk(chunk: Any) -> None:
    """Raise where ``chunk`` is no number of slices.

    Raises:
        InputError: it is none.
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(
            "chunk= is how many targets or conditions to explain at once, a whole number of at least 1, "
            f"not {chunk!r}"
        )


def check_nodes(nodes: Any) -> None:
    """Raise where ``nodes`` is no list of names.

    Raises:
        PatternError: it is none.
    """
    listed = isinstance(nodes, Collection) and not isinstance(nodes, str | Tensor)
    if not listed or not all(isinstance(name, str) for name in nodes):
        raise PatternError(f"nodes={nodes!r}: give names of nodes, such as ['relu', 'layer4_1_add']")


def run_slices(
    program: Callable[..., Mapping[str, Any]], inputs: Sequence[Tensor], target: Tensor | None,
    masks: Sequence[Tensor], count: int, axes: Sequence[int], chunk: int | None = None,
    rivals: Sequence[Tensor] = (),
) -> Results:  # fmt: skip
    """Run a program for several slices.

    Args:
        program: maps ``(*inputs, target, *rivals, *masks)`` to the fields of :class:`Results`; for targets that
            differ ``(*inputs, targets, number, *rivals, *masks)``.
        inputs: what all slices share.
        target: (batch, slices); or (batch,), or ``None``, shared as well.
        masks: each (slices, ...); or (1, ...), shared.
        count: the number of slices.
        axes: for each input, where the axis of slices is put in its relevance.
        chunk: how many of them to compute at once, which bounds the memory; each chunk computes
            what its slices share anew. ``None``: all.
        rivals: none, or (batch, rivals), which all slices share.

    Returns:
        As the program, with an axis of slices behind the batch; ``output`` has none. In relevance of nodes it is where
        it is in that of the first input.

    Raises:
        RuleError: a rule does what cannot be done for several slices at once.
    """
    several = target is not None and target.dim() == 2
    shared = [None] * (len(inputs) + 1)
    dims: Any = {"output": None, "target": 1 if several else None, "start": 1, "checkpoints": 1, "nodes": axes[0]}
    out_dims: Any = Results(list(axes), **dims)

    def results(*arguments: Any) -> Results:
        found = program(*arguments)
        return Results(**{**found, "relevance": list(found["relevance"])})  # of the type that out_dims has

    chunks: list[Results] = []
    for numbers in torch.split(torch.arange(count, device=inputs[0].device), chunk or count):
        some = [mask.expand(count, *mask.shape[1:])[numbers] for mask in masks]
        classes = [target] if target is None or not several else [target.T[numbers], numbers - numbers[0]]
        in_dims = (*shared, *[0] * (len(classes) - 1), *[None] * len(rivals), *[0] * len(some))
        try:
            chunks.append(torch.vmap(results, in_dims=in_dims, out_dims=out_dims)(*inputs, *classes, *rivals, *some))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise RuleError(
                f"this cannot be computed for several targets or conditions at once; explain them one by one: {error}"
            ) from error
    joined = chunks[0] if len(chunks) == 1 else _joined(chunks, list(axes), several=several)
    if not several and joined.target is not None:
        joined = joined._replace(target=joined.target.unsqueeze(1).expand(-1, count))
    return joined


def _joined(chunks: Sequence[Results], axes: list[int], *, several: bool) -> Results:
    first = chunks[0]
    along = [(chunk.start, chunk.checkpoints, chunk.target if several else ()) for chunk in chunks]
    start, checkpoints, targets = pytree.tree_map(lambda *values: torch.cat(values, dim=1), *along)
    of_nodes = [chunk.nodes for chunk in chunks]
    nodes = pytree.tree_map(lambda *values: torch.cat(values, dim=axes[0]), *of_nodes)
    of_inputs = zip(*(chunk.relevance for chunk in chunks), strict=True)
    relevance = [torch.cat(parts, dim=axis) for parts, axis in zip(of_inputs, axes, strict=True)]
    target = targets if several else first.target
    return first._replace(relevance=relevance, start=start, checkpoints=checkpoints, nodes=nodes, target=target)
