"""Where the batch goes when an operation moves its operand."""

from __future__ import annotations

from typing import Any

from fxlrp.common.errors import CaptureError
from fxlrp.steps import batch_axis
from fxlrp.vocabulary.operation import Arguments


class PickedItemError(CaptureError):
    """One item of the batch is picked, or the batch is reduced.

    Attributes:
        of_input: whether that is done to an input of the model, which may be a list and what is picked an entry of it.
    """

    of_input = False


def rank(a: Arguments, *dims: int) -> Any:
    """The rank of the operand; any will do where no axis is counted from the end."""
    return 64 if all(isinstance(d, int) and d >= 0 for d in dims) else a["self"].dim()


def in_front(position: Any, *dims: int) -> bool:
    """Whether the batch is the first axis and ``dims``, counted from the end, cannot mean it."""
    return isinstance(position, batch_axis.Position) and position == batch_axis.Position(0) and all(d < 0 for d in dims)


def batch_permuted(position: Any, a: Arguments) -> Any:
    return batch_axis.permuted(position, a["dims"], len(a["dims"]))


def batch_swapped(position: Any, a: Arguments) -> Any:
    """After a transpose; counted from the end, the axis of a batch in front is as far as there are axes."""
    dims = a["dim0"], a["dim1"]
    stays = in_front(position) and all(dim > 0 or -a["least"] < dim < 0 for dim in dims)
    return position if stays else batch_axis.swapped(position, *dims, rank(a, *dims))


def batch_inserted(position: Any, a: Arguments) -> Any:
    return _inserted(position, a, a["self"])


def batch_stacked(position: Any, a: Arguments) -> Any:
    return _inserted(position, a, a["tensors"][0])


def _inserted(position: Any, a: Arguments, value: Any) -> Any:
    """After a new axis; counted from the end, one in front is further than there are axes."""
    dim = a["dim"]
    if in_front(position, dim) and -dim <= a["least"]:
        return position
    return batch_axis.inserted(position, dim, 64 if dim >= 0 else value.dim())


def batch_removed(position: Any, a: Arguments) -> Any:
    dims = a["dim"] if isinstance(a["dim"], list) else [a["dim"]]
    if isinstance(position, batch_axis.Position) and position.outer == 1 and position.axis in dims:
        raise PickedItemError(
            "forward(), or output=, picks one item of the batch or reduces over the batch; items are explained one by "
            "one, so that the axis of the batch must stay: write output=lambda output: output[:, 5] for output[5]. "
            "Where the whole input is one item, such as a bag of instances, say compile(…, batch=None)"
        )
    return position if in_front(position, *dims) else batch_axis.removed(position, dims, rank(a, *dims))


def _may_be_batch(position: Any, dim: int) -> bool:
    """Whether ``dim`` may be the axis of the batch."""
    if not isinstance(position, batch_axis.Position):
        return True
    return dim == position.axis if dim >= 0 else not in_front(position, dim)


def batch_picked(position: Any, a: Arguments) -> Any:
    """After ``select``; of a batch of which the size is known, an item is left."""
    if not (a["fixed"] and _may_be_batch(position, a["dim"])):
        return batch_removed(position, a)
    return batch_axis.picked(position, a["dim"], a["self"].shape, a["batch"], a["index"], a["output"])


def batch_sliced(position: Any, a: Arguments) -> Any:
    """After a slice."""
    if not _may_be_batch(position, a["dim"]):
        return position
    step = a.get("step", 1)
    return batch_axis.sliced(position, a["dim"], a["self"].shape, a["batch"], a["start"], a["end"], step)


def batch_narrowed(position: Any, a: Arguments) -> Any:
    """After ``narrow``."""
    if not _may_be_batch(position, a["dim"]):
        return position
    start = a["start"]
    return batch_axis.sliced(position, a["dim"], a["self"].shape, a["batch"], start, start + a["length"])


def batch_parted(position: Any, a: Arguments) -> Any:
    """After a split: where the batch is in each piece is told of the piece, :func:`batch_of_piece`."""
    return position


def batch_unbound(position: Any, a: Arguments) -> Any:
    """After ``unbind``; of a batch of which the size is known each piece tells whose it is, :func:`batch_of_piece`."""
    return position if a["fixed"] and _may_be_batch(position, a["dim"]) else batch_removed(position, a)


def batch_of_piece(position: Any, a: Arguments, index: int, piece: Any) -> Any:
    """In one of the pieces of a value.

    Args:
        position: that of the value before it was taken apart.
        a: the arguments of what took it apart; ``together``, the position that holds for all pieces.
        index: the number of the piece.
        piece: it.
    """
    shape, dim, batch = a["self"].shape, a["dim"], a["batch"]
    if not _may_be_batch(position, dim):
        return a["together"]
    if a["unbinds"]:
        return batch_axis.picked(position, dim, shape, batch, index, piece) if a["fixed"] else a["together"]
    before = sum(a["output"][earlier].shape[dim] for earlier in range(index))
    return batch_axis.sliced(position, dim, shape, batch, before, before + piece.shape[dim])


def batch_repeated(position: Any, a: Arguments) -> Any:
    """After ``repeat``: the whole batch stands behind itself."""
    repeats = a["repeats"]
    if in_front(position) and not a["widens"] and isinstance(repeats[0], int) and repeats[0] == 1:
        return position
    return batch_axis.repeated(position, repeats, a["self"].dim())


def batch_interleaved(position: Any, a: Arguments) -> Any:
    """After ``repeat_interleave``: copies of an item stand side by side, where it was."""
    return position


def batch_indexed(position: Any, a: Arguments) -> Any:
    indices = a["indices"]
    together = "".join("k" if index is None else "i" for index in indices).strip("k").count("k") == 0
    if in_front(position) and indices[0] is None and together:
        return position
    return batch_axis.indexed(position, indices, a["self"].shape, a["batch"])


def batch_selected(position: Any, a: Arguments) -> Any:
    """After ``index_select``: an index of one axis."""
    if in_front(position) and a["dim"] != 0:
        return position
    return batch_axis.selected(position, a["dim"], a["index"], a["self"].shape, a["batch"])


def batch_written(position: Any, a: Arguments) -> Any:
    """What is written to places stands where they are; of what it is written over, nothing moves."""
    if in_front(position) or a["operand"] == "self":
        return position
    return batch_axis.written(position, a["output"].shape, a["batch"])


def batch_of_written_slice(position: Any, a: Arguments) -> Any:
    """After ``slice_scatter``: a buffer with places for more items than there are, such as a cache, is a constant."""
    if a["operand"] == "self" or not _may_be_batch(position, a["dim"]):
        return position
    places = a["start"], a["end"], a["step"]
    return batch_axis.placed(position, a["dim"], a["output"].shape, a["batch"], *places)


def batch_summed(position: Any, a: Arguments) -> Any:
    """What is summed onto the axis of the batch is of the item in whose place it is."""
    dim = a["dim"]
    if in_front(position):
        return position
    return batch_axis.summed(position, dim, rank(a, dim))


def batch_reshaped(position: Any, a: Arguments) -> Any:
    shape = a.get("shape", a.get("size"))
    # Items as groups of channels: the first of the new axes is one long.
    put_behind = isinstance(shape, list | tuple) and len(shape) > 1 and isinstance(shape[0], int) and shape[0] == 1
    if in_front(position) and not put_behind:
        return position  # however the rest is cut, items stay one behind the other
    return batch_axis.reshaped(position, a["self"].shape, a["output"].shape, a["batch"])


def batch_expanded(position: Any, a: Arguments) -> Any:
    if in_front(position) and not a["widens"]:
        return position
    return batch_axis.expanded(position, a["self"].dim(), a["output"].dim())
