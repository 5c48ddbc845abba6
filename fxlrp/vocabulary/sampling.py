"""Sampling at computed places, unpooling, and resizing with antialiasing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps.sampling import Resize, grid_sample_transpose, outside_of_image, unpool_rest, unpool_transpose
from fxlrp.vocabulary.channel_moves import behind_batch
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Sign, Unsupported
from fxlrp.vocabulary.routing import move
from fxlrp.vocabulary.selection import max_pool

aten = torch.ops.aten

_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def lower_grid_sample(input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros",
                      align_corners: bool | None = None) -> Any:
    return lower_grid_sampler(input, grid, _MODES[mode], _PADDINGS[padding_mode], bool(align_corners))


def lower_grid_sampler(input: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> Any:
    if mode == _MODES["bicubic"]:
        raise Unsupported("sampling a grid by bicubic interpolation, whose weights have both signs", final=True)
    return aten.grid_sampler.default(input, grid, mode, padding, align_corners)


def _grid(a: Arguments) -> tuple[Any, ...]:
    return a["input"], a["grid"], a["interpolation_mode"], a["padding_mode"], a["align_corners"]


def pooled_with_indices(dims: int) -> Any:
    """The lowering of max pooling that returns its indices, which carry no signal."""
    return partial(max_pool(dims).call, return_indices=True)


def lower_unpool(input: Any, indices: Any, output_size: Any, *form: Any) -> Any:
    return aten.max_unpool2d.default(input, indices, list(output_size))


def lower_fractional(dims: int) -> Any:
    """Fractional pooling with given samples: each value is picked by its index."""
    function = getattr(aten, f"fractional_max_pool{dims}d").default

    def lower(input: Any, kernel_size: Any, output_size: Any, samples: Any) -> Any:
        indices = function(input, kernel_size, output_size, samples)[1]
        flat = aten.flatten.using_ints(input, 2, -1)
        picked = aten.gather.default(flat, 2, torch.flatten(indices, 2))
        return aten.unflatten.int(picked, -1, list(output_size)), indices

    return lower


def antialiased(name: str) -> Operation:
    target = getattr(aten, name).vec

    def bind(a: Arguments, operand: str) -> Any:
        return Resize(name, a["output_size"], a["align_corners"], a["scale_factors"]), None, None

    sign = Sign.ANY if "bicubic" in name else Sign.KEEPS
    return Operation(target, Kind.LINEAR, bind=bind, sign=sign, channels=behind_batch)


OPERATIONS = [
    # A sample is its place, and relevance goes there by the weights alone: the values between which it lies are alike.
    move(
        aten.grid_sampler.default, lambda r, a: grid_sample_transpose(r, *_grid(a)), operands=("input",),
        loses=lambda r, a: outside_of_image(r, *_grid(a)), channels=behind_batch, functions=(torch.grid_sampler,),
        lower=lower_grid_sampler,
    ),
    move(
        aten.max_unpool2d.default, lambda r, a: unpool_transpose(r, a["self"], a["indices"], a["output"]),
        lower=lower_unpool,
        loses=lambda r, a: unpool_rest(r, a["indices"]), channels=behind_batch,
    ),
    antialiased("_upsample_bilinear2d_aa"),
    antialiased("_upsample_bicubic2d_aa"),
]

COMPOSED = [
    Composed(lower_grid_sample, (F.grid_sample,), aten=dict.fromkeys(
        (aten.grid_sampler_2d.default, aten.grid_sampler_3d.default, aten.grid_sampler.default), lower_grid_sampler
    )),
    *(
        Composed(pooled_with_indices(dims), (getattr(F, f"max_pool{dims}d_with_indices"),), (), (
            {} if dims == 1 else {getattr(aten, f"max_pool{dims}d_with_indices").default: None}
        ))
        for dims in (1, 2, 3)
    ),
    *(
        Composed(lower_fractional(dims), (), (), {getattr(aten, f"fractional_max_pool{dims}d").default: None})
        for dims in (2, 3)
    ),
]
