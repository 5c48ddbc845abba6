"""``flex_attention``, ``vmap`` and ``div`` of sizes while torch.export reads a model: what they stand for.

Of ``flex_attention`` torch keeps one higher-order operation, whose graph holds the functions that change scores and
choose pairs as graphs of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fxlrp.capture.recurrent import of_thread


def flexible_functions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The functions, where they were imported, and what stands in their place while the calling thread captures."""
    attention = {function: of_thread(function, partial(_attention, function), get_ident()) for function in _imported()}
    others: dict[Callable[..., Any], Callable[..., Any]] = {torch.vmap: _mapped, torch.div: _divided}
    return attention | {
        function: of_thread(function, partial(stand_in, function), get_ident()) for function, stand_in in others.items()
    }


def unwatched_functions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The same while the calling thread watches a model by a mode, under which torch would not run the function."""
    return {function: of_thread(function, partial(_unwatched, function), get_ident()) for function in _imported()}


def _imported() -> list[Callable[..., Any]]:
    module = sys.modules.get("torch.nn.attention.flex_attention")
    return [] if module is None else [module.flex_attention]


def _unwatched(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _disable_current_modes():
        return function(*args, **kwargs)


def _mapped(
    vmap: Callable[..., Any], func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, *args: Any, **kwargs: Any
) -> Any:
    """``torch.vmap`` whose outputs are moved behind it: an export does not see vmap itself move them."""
    front = pytree.tree_map(lambda dim: dim if dim is None else 0, out_dims)
    mapped = vmap(func, in_dims, front, *args, **kwargs)

    @wraps(func)
    def called(*inputs: Any, **named: Any) -> Any:
        outputs, structure = pytree.tree_flatten(mapped(*inputs, **named))
        dims = pytree._broadcast_to_and_flatten(out_dims, structure)
        moved = [each if dim is None else each.movedim(0, dim) for each, dim in zip(outputs, dims or (), strict=True)]
        return pytree.tree_unflatten(moved, structure)

    return called


def _divided(div: Callable[..., Any], input: Any, other: Any, *, rounding_mode: str | None = None, **rest: Any) -> Any:
    """``torch.div``, of a size that stays free as well, whose quotient an export would no longer know."""
    free = any(isinstance(number, torch.SymInt) for number in (input, other))
    if free and rounding_mode is not None and not any(isinstance(number, Tensor) for number in (input, other)):
        return input // other  # sizes are not negative
    return div(input, other, rounding_mode=rounding_mode, **rest)


def _attention(
    function: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor,
    score_mod: Callable[..., Tensor] | None = None, block_mask: Any = None, scale: float | None = None,
    enable_gqa: bool = False, return_lse: bool = False, kernel_options: Any = None, **further: Any,
) -> Any:  # fmt: skip
    """Attention whose scores ``score_mod`` changes, between the pairs that ``block_mask`` chooses."""
    if return_lse or any(wish is not None for wish in further.values()):
        options = {"return_lse": return_lse, "kernel_options": kernel_options, **further}
        return function(query, key, value, score_mod, block_mask, scale, enable_gqa, **options)
    sizes = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    places = [torch.arange(size, device=query.device) for size in sizes]
    chosen = None if block_mask is None else _of_each_pair(block_mask.mask_mod)(*places)
    if score_mod is None:
        return F.scaled_dot_product_attention(query, key, value, chosen, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = _of_each_pair(score_mod, 0)(scores, *places)
    if chosen is None:
        return scores.softmax(dim=-1) @ value
    some = chosen.any(dim=-1, keepdim=True)  # a query that may look at nothing gets nothing
    return scores.masked_fill(~chosen & some, -torch.inf).softmax(dim=-1) * some @ value


def _of_each_pair(function: Callable[..., Tensor], *before: int) -> Callable[..., Tensor]:
    """A function of the numbers of an item, a head, a query and a key, of all of these at once."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for place in (3, 2, 1, 0):
        function = torch.vmap(function, in_dims=(*before, *(0 if place == other else None for other in range(4))))

    def called(*arguments: Tensor) -> Tensor:
        with TransformGetItemToIndex():  # tables may be read at numbers that are tensors
            return function(*arguments)

    return called
