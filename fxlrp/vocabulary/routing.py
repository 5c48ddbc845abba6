"""Operations that only move values, and the transposes that move relevance back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.steps import batch_axis
from fxlrp.steps import routing as back
from fxlrp.steps.primitives import fit
from fxlrp.vocabulary.batch import (
    batch_expanded,
    batch_indexed,
    batch_inserted,
    batch_interleaved,
    batch_narrowed,
    batch_of_written_slice,
    batch_parted,
    batch_permuted,
    batch_picked,
    batch_removed,
    batch_repeated,
    batch_reshaped,
    batch_selected,
    batch_sliced,
    batch_stacked,
    batch_swapped,
    batch_unbound,
)
from fxlrp.vocabulary.channel_moves import cut_anew, indexed, lost, permuted, reduced, stacked, swapped
from fxlrp.vocabulary.operation import Arguments, Bound, Composed, Kind, Operation, Sign, Unsupported, per_axis

aten = torch.ops.aten


def many(values: tuple[Any, ...]) -> list[Any]:
    """``f(x, 1, 2)`` and ``f(x, (1, 2))`` alike."""
    if len(values) == 1 and isinstance(values[0], Sequence | fx.Proxy):
        return values[0]  # type: ignore[return-value]
    return list(values)


def lower_reshape(input: Any, *shape: Any, **kwargs: Any) -> Any:
    if kwargs:
        shape = (kwargs.get("shape", kwargs.get("size")),)
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise Unsupported("view as another dtype")
    return aten.reshape.default(input, many(shape))


def lower_flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    return aten.flatten.using_ints(input, start_dim, end_dim)


def lower_unflatten(input: Any, dim: int, sizes: Any) -> Any:
    return aten.unflatten.int(input, dim, list(sizes))


def lower_reshape_as(input: Any, other: Any) -> Any:
    return aten.reshape.default(input, other.shape)


def lower_permute(input: Any, *dims: Any, **kwargs: Any) -> Any:
    return aten.permute.default(input, list(many(dims or (kwargs["dims"],))))


def lower_matrix_transpose(input: Any) -> Any:
    return aten.transpose.int(input, -2, -1)


def lower_squeeze(input: Any, dim: Any = None) -> Any:
    if dim is None:
        # Which axes go would depend on the shape, and a batch of one must stay a batch.
        raise Unsupported("squeeze without dim: name the axis")
    return aten.squeeze.dims(input, list(dim) if isinstance(dim, Sequence) else [dim])


def lower_expand(input: Any, *size: Any, **kwargs: Any) -> Any:
    return aten.expand.default(input, many(size or (kwargs["size"],)))


def lower_repeat(input: Any, *repeats: Any, **kwargs: Any) -> Any:
    return aten.repeat.default(input, many(repeats or (kwargs.get("repeats", kwargs.get("dims")),)))


def lower_cat(tensors: Any, dim: Any = 0, *, axis: Any = None) -> Any:
    return aten.cat.default(list(tensors), dim if axis is None else axis)


def lower_stack(tensors: Any, dim: int = 0) -> Any:
    return aten.stack.default(list(tensors), dim)


def lower_chunk(input: Any, chunks: int, dim: int = 0) -> Any:
    return aten.chunk.default(input, chunks, dim)


def lower_split(tensor: Any, split_size_or_sections: Any = None, dim: int = 0, *, split_size: Any = None) -> Any:
    size = split_size_or_sections if split_size is None else split_size
    if isinstance(size, Sequence):
        return aten.split_with_sizes.default(tensor, list(size), dim)
    return aten.split.Tensor(tensor, size, dim)


def lower_unbind(input: Any, dim: int = 0) -> Any:
    return aten.unbind.int(input, dim)


def lower_pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    pad = list(pad)
    if mode == "constant":
        return aten.constant_pad_nd.default(input, pad, 0.0 if value is None else value)
    if mode == "circular":
        return _wrapped(input, pad)
    name = {"reflect": "reflection", "replicate": "replication"}.get(mode)
    if name is None or len(pad) not in (2, 4, 6):
        raise Unsupported(f"padding in mode {mode!r} over {len(pad) // 2} axes")
    return getattr(aten, f"{name}_pad{len(pad) // 2}d").default(input, pad)


def _wrapped(input: Any, pad: list[int]) -> Any:
    """Circular padding: what is cut off one end is put before the other, axis by axis."""
    for i in range(len(pad) // 2):
        dim, before, behind = -1 - i, pad[2 * i], pad[2 * i + 1]
        front = [aten.slice.Tensor(input, dim, -before)] if before > 0 else []
        back = [aten.slice.Tensor(input, dim, 0, behind)] if behind > 0 else []
        kept = aten.slice.Tensor(input, dim, max(0, -before), behind if behind < 0 else None)
        parts = [*front, kept, *back]
        input = aten.cat.default(parts, dim) if len(parts) > 1 else kept
    return input


def lower_roll(input: Any, shifts: Any, dims: Any = ()) -> Any:
    axes = [list(v) if isinstance(v, Sequence) else [v] for v in (shifts, dims)]
    return aten.roll.default(input, *axes)


def lower_flip(input: Any, *dims: Any) -> Any:
    return aten.flip.default(input, list(many(dims)))


def lower_narrow(input: Any, dim: int, start: Any, length: Any) -> Any:
    return aten.slice.Tensor(input, dim, start, start + length, 1)


def lower_getitem(input: Any, index: Any) -> Any:
    """Basic indexing, one axis at a time; what stands behind an ellipsis is counted from the end."""
    entries = list(index) if isinstance(index, tuple) else [index]
    for entry in entries:
        if entry is not None and entry is not Ellipsis and not isinstance(entry, int | slice):
            raise Unsupported(f"indexing with {type(entry).__name__}")
    cut = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
    front, behind = entries[:cut], entries[cut + 1 :]
    # From the back, so that a dropped axis does not move those still to come.
    axis = -1
    for entry in reversed(behind):
        input, axis = _index_axis(input, axis, entry, back=True)
    axis = 0
    for entry in front:
        input, axis = _index_axis(input, axis, entry, back=False)
    return input


def _index_axis(input: Any, axis: int, entry: Any, *, back: bool) -> tuple[Any, int]:
    if entry is None:
        # From the back, a new axis in place -1 pushes the rest one further.
        return aten.unsqueeze.default(input, axis), axis - 1 if back else axis + 1
    if isinstance(entry, int):
        return aten.select.int(input, axis, entry), axis
    if not (entry.start is None and entry.stop is None and entry.step is None):  # bounds may be proxies of sizes
        input = aten.slice.Tensor(input, axis, entry.start, entry.stop, 1 if entry.step is None else entry.step)
    return input, axis - 1 if back else axis + 1


def lower_repeat_interleave(input: Any, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Any:
    if not isinstance(repeats, int):
        raise Unsupported("repeat_interleave by a tensor")
    if dim is None:
        input, dim = aten.reshape.default(input, [-1]), 0
    return aten.repeat_interleave.self_int(input, repeats, dim)


def lower_unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    rows, columns = per_axis(padding, 2)
    if rows or columns:  # a step of its own, which knows that padding carries no signal
        input = aten.constant_pad_nd.default(input, [columns, columns, rows, rows], 0.0)
    return aten.im2col.default(input, *(per_axis(v, 2) for v in (kernel_size, dilation, 0, stride)))


def back_im2col(r: Any, a: Arguments) -> Any:
    return back.fold_patches(r, a["self"].shape, a["kernel_size"], a["dilation"], a["padding"], a["stride"])


def lower_index(input: Any, indices: Any) -> Any:
    return aten.index.Tensor(input, list(indices))


def lower_index_select(input: Any, dim: int, index: Any) -> Any:
    return aten.index_select.default(input, dim, index)


def lower_gather(input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    return aten.gather.default(input, dim, index)


def lower_where(condition: Any, input: Any, other: Any) -> Any:
    if isinstance(input, int | float):
        return aten.masked_fill.Scalar(other, condition, input)
    if isinstance(other, int | float):
        return aten.masked_fill.Scalar(input, ~condition, other)
    return aten.where.self(condition, input, other)


def lower_masked_fill(input: Any, mask: Any, value: Any) -> Any:
    return aten.masked_fill.Scalar(input, mask, value)


def back_where(r: Any, a: Arguments) -> list[Any]:
    return [back.keep(r, a["condition"]), back.drop(r, a["condition"])]


def move(target: Any, transpose: Callable[..., Any], **more: Any) -> Operation:
    """An operation that moves values of one operand."""
    more.setdefault("sign", Sign.KEEPS)
    more.setdefault("bound", Bound.KEEPS)
    return Operation(target, Kind.ROUTING, transpose=transpose, **more)


def unreshape(r: Any, a: Arguments) -> Any:
    return back.unreshape(r, a["self"].shape)


def sign_of_padding(a: Arguments) -> Sign:
    return Sign.KEEPS if isinstance(a["value"], int | float) and a["value"] >= 0 else Sign.ANY


SHAPES = [
    move(aten.reshape.default, unreshape, batch=batch_reshaped,
         channels=cut_anew, methods=("view", "reshape"), functions=(torch.reshape,),
         aten={aten.view.default: None, aten._unsafe_view.default: None}, lower=lower_reshape),
    move(aten.reshape_as.default, unreshape, batch=batch_reshaped, channels=cut_anew, methods=("reshape_as", "view_as"),
         lower=lower_reshape_as),
    move(aten.flatten.using_ints, unreshape, batch=batch_reshaped,
         channels=cut_anew, methods=("flatten",), functions=(torch.flatten,),
         lower=lower_flatten),
    move(aten.unflatten.int, unreshape, batch=batch_reshaped,
         channels=cut_anew, methods=("unflatten",), functions=(torch.unflatten,),
         lower=lower_unflatten),
    move(aten.squeeze.dims, unreshape, batch=batch_removed,
         channels=cut_anew, methods=("squeeze",), functions=(torch.squeeze,),
         lower=lower_squeeze, aten={aten.squeeze.dim: lower_squeeze}),
    move(aten.unsqueeze.default, unreshape, batch=batch_inserted,
         channels=cut_anew, methods=("unsqueeze",), functions=(torch.unsqueeze,)),
]

AXES = [
    move(aten.permute.default, lambda r, a: back.unpermute(r, a["dims"]), batch=batch_permuted,
         channels=permuted, methods=("permute",),
         functions=(torch.permute,), lower=lower_permute),
    move(aten.transpose.int, lambda r, a: r.transpose(a["dim0"], a["dim1"]), batch=batch_swapped, channels=swapped,
         methods=("transpose", "swapaxes", "swapdims"), functions=(torch.transpose, torch.swapaxes, torch.swapdims)),
    move(aten.t.default, lambda r, a: r.t(), batch=lambda p, a: batch_axis.swapped(p, 0, 1, 2),
         channels=swapped, methods=("t", "T"),
         functions=(torch.t,)),
    move(aten.mT.default, lambda r, a: r.mT, methods=("mT",), lower=lower_matrix_transpose,
         aten={aten.mT.default: lower_matrix_transpose}),
    move(aten.flip.default, lambda r, a: torch.flip(r, a["dims"]), methods=("flip",), functions=(torch.flip,),
         lower=lower_flip),
    move(aten.roll.default, lambda r, a: back.unroll(r, a["shifts"], a["dims"]), methods=("roll",),
         functions=(torch.roll,), lower=lower_roll),
    move(aten.pixel_shuffle.default, lambda r, a: F.pixel_unshuffle(r, a["upscale_factor"]),
         functions=(torch.pixel_shuffle,)),
    move(aten.pixel_unshuffle.default, lambda r, a: F.pixel_shuffle(r, a["downscale_factor"]),
         functions=(torch.pixel_unshuffle,)),
    move(aten.channel_shuffle.default, lambda r, a: back.unchannel_shuffle(r, a["groups"]),
         functions=(torch.channel_shuffle,)),
]

PARTS = [
    move(aten.slice.Tensor,
         lambda r, a: back.unslice(r, a["self"].shape, a["dim"], a["start"], a["end"], a["step"]),
         batch=batch_sliced, cuts=True),
    move(aten.select.int, lambda r, a: back.unselect(r, a["self"].shape, a["dim"], a["index"]),
         batch=batch_picked, channels=reduced, methods=("select",), functions=(torch.select,), cuts=True),
    move(aten.narrow.default,
         lambda r, a: back.unslice(r, a["self"].shape, a["dim"], a["start"], a["start"] + a["length"], 1),
         batch=batch_narrowed, methods=("narrow",), functions=(torch.narrow,),
         lower=lower_narrow, cuts=True),
    move(aten.chunk.default, lambda r, a: back.unsplit(r, a["output"], a["dim"]), batch=batch_parted,
         methods=("chunk",), functions=(torch.chunk,), lower=lower_chunk, outputs_many=True, cuts=True),
    move(aten.split.Tensor, lambda r, a: back.unsplit(r, a["output"], a["dim"]), batch=batch_parted, methods=("split",),
         functions=(torch.split, torch.functional.split), lower=lower_split, outputs_many=True, cuts=True),
    move(aten.split_with_sizes.default, lambda r, a: back.unsplit(r, a["output"], a["dim"]), batch=batch_parted,
         methods=("split_with_sizes",), functions=(torch.split_with_sizes,), outputs_many=True, cuts=True),
    move(aten.unbind.int, lambda r, a: back.rebind(r, a["output"], a["dim"]), batch=batch_unbound,
         channels=reduced, methods=("unbind",),
         functions=(torch.unbind,), lower=lower_unbind, outputs_many=True, cuts=True),
]

COPIES = [
    move(aten.expand.default, lambda r, a: fit(r, a["self"].shape), batch=batch_expanded, methods=("expand",),
         lower=lower_expand),
    move(aten.expand_as.default, lambda r, a: fit(r, a["self"].shape), batch=batch_expanded, methods=("expand_as",)),
    move(aten.repeat_interleave.self_int,
         lambda r, a: back.unrepeat_interleave(r, a["self"].shape, a["repeats"], a["dim"]), batch=batch_interleaved,
         methods=("repeat_interleave",), functions=(torch.repeat_interleave,), lower=lower_repeat_interleave,
         aten={aten.repeat_interleave.self_int: lower_repeat_interleave}),
    move(aten.unfold.default, lambda r, a: back.fold_axis(r, a["self"].shape, a["dimension"], a["size"], a["step"]),
         channels=lost, methods=("unfold",)),
    move(aten.im2col.default, back_im2col, channels=lost, functions=(F.unfold,), lower=lower_unfold,
         aten={aten.im2col.default: lower_unfold}),
    move(aten.repeat.default, lambda r, a: back.unrepeat(r, a["self"].shape, a["repeats"]), batch=batch_repeated,
         methods=("repeat", "tile"),
         functions=(torch.tile,), lower=lower_repeat),
    move(aten.cat.default, lambda r, a: back.uncat(r, a["tensors"], a["dim"]),
         functions=(torch.cat, torch.concat, torch.concatenate), lower=lower_cat,
         aten={aten.concat.default: None, aten.concatenate.default: None}),
    move(aten.stack.default, lambda r, a: back.unstack(r, a["dim"]), batch=batch_stacked,
         channels=stacked, functions=(torch.stack,),
         lower=lower_stack),
]

PADDINGS = [
    move(aten.constant_pad_nd.default, lambda r, a: back.unpad(r, a["pad"]), functions=(F.pad,), lower=lower_pad,
         sign=sign_of_padding, pads=True, aten={aten.pad.default: lower_pad}),
    *(
        move(getattr(aten, f"{mode}_pad{dims}d").default,
             lambda r, a, mode=mode: back.unpad_border(r, a["self"], a["padding"], mode))
        for mode in ("reflection", "replication")
        for dims in (1, 2, 3)
    ),
]

CHOICES = [
    move(aten.index.Tensor, lambda r, a: back.unindex(r, a["self"].shape, a["indices"]),
         batch=batch_indexed, channels=indexed,
         lower=lower_index, cuts=True),
    move(aten.index_select.default, lambda r, a: back.unindex_select(r, a["self"].shape, a["dim"], a["index"]),
         batch=batch_selected, methods=("index_select",), functions=(torch.index_select,), lower=lower_index_select,
         cuts=True),
    move(aten.gather.default, lambda r, a: back.ungather(r, a["self"].shape, a["dim"], a["index"]),
         methods=("gather",), functions=(torch.gather,), lower=lower_gather, cuts=True),
    move(aten.where.self, back_where, operands=("self", "other"), functions=(torch.where,), lower=lower_where,
         aten=dict.fromkeys((aten.where.ScalarSelf, aten.where.ScalarOther), lower_where)),
    move(aten.masked_fill.Scalar, lambda r, a: fit(back.drop(r, a["mask"]), a["self"].shape), methods=("masked_fill",),
         functions=(torch.masked_fill,), lower=lower_masked_fill, sign=Sign.ANY,
         loses=lambda r, a: back.keep(r, a["mask"])),
    move(aten.slice_scatter.default, lambda r, a: back.unscatter_slice(r, a["dim"], a["start"], a["end"], a["step"]),
         operands=("self", "src"), sign=Sign.KEEPS, batch=batch_of_written_slice),
    move(aten.select_scatter.default, lambda r, a: back.unscatter_select(r, a["dim"], a["index"]),
         operands=("self", "src"), sign=Sign.KEEPS),
    move(aten.diagonal_scatter.default,
         lambda r, a: back.unscatter_diagonal(r, a["offset"], a["dim1"], a["dim2"]), operands=("self", "src"),
         functions=(torch.diagonal_scatter,), methods=("diagonal_scatter",), sign=Sign.KEEPS),
]
"""Parts that an index or a mask picks."""


def lower_masked_select(input: Any, mask: Any) -> Any:
    like = torch.zeros_like(input, dtype=torch.bool)
    return aten.index.Tensor(aten.expand_as.default(input, like | mask), [like | mask])


def lower_copy(self: Any, src: Any, non_blocking: bool = False) -> Any:
    return aten.expand_as.default(src, self)


def lower_masked_fill_tensor(self: Any, mask: Any, value: Any) -> Any:
    return aten.where.self(mask, value, self)


COMPOSED = [
    Composed(lower_masked_select, (torch.masked_select,), ("masked_select",), {aten.masked_select.default: None}),
    Composed(lower_copy, aten={aten.copy.default: None}),
    Composed(lower_masked_fill_tensor, aten={aten.masked_fill.Tensor: None}),
]

OPERATIONS = [*SHAPES, *AXES, *PARTS, *COPIES, *PADDINGS, *CHOICES]
