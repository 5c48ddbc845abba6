"""Which part of a tensor belongs to which item of the batch, and sums over items.

Nearly always the first axis is the batch. Sequence-first layouts, windows folded into the
batch and stacked projections put it elsewhere: there axis ``axis`` is ``outer × batch ×
inner`` long. A :class:`Position` says so and follows the moves of a value, a
:class:`BatchAxis` is what sums over items need. Where an index has picked entries of that
axis, as a router picks the tokens of an expert, each entry has an *owner*, the item that it is of.
"""

from fxlrp.steps.batch_axis.positions import (
    AnyPosition,
    BatchAxis,
    OwnedPosition,
    Position,
    behind_places,
    einsum_position,
    expanded,
    indexed,
    inserted,
    joined,
    owners_in,
    owners_of,
    permuted,
    picked,
    removed,
    repeated,
    reshaped,
    selected,
    sliced,
    summed,
    swapped,
    written,
)
from fxlrp.steps.batch_axis.sums import (
    conditioned,
    item_sum,
    rescale,
    rescale_along,
    rescale_into,
    rescale_signed_into,
    rescale_signed_to,
    rescale_to,
    row_sums,
    rows_of,
    select_target,
    spread_items,
    sum_items,
    total,
)

__all__ = [
    "AnyPosition", "BatchAxis", "OwnedPosition", "Position", "behind_places", "conditioned", "einsum_position",
    "expanded", "indexed", "inserted", "item_sum", "joined", "owners_in", "owners_of", "permuted", "picked",
    "removed", "repeated", "rescale", "rescale_along", "rescale_into", "rescale_signed_into", "rescale_signed_to",
    "rescale_to", "reshaped", "row_sums", "rows_of", "select_target", "selected", "sliced", "spread_items",
    "sum_items", "summed", "swapped", "total", "written",
]  # fmt: skip
