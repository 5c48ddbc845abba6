"""Features of boxes, as detectors take them: averages, and the largest values, in the bins of each box."""

from __future__ import annotations

from typing import Any

import torch

from fxlrp.steps import batch_axis
from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.regions import BoxAverage, items_of_boxes, largest_places
from fxlrp.vocabulary.channel_moves import behind_batch
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Sign

aten = torch.ops.aten


def _torchvision() -> Any:
    import torchvision  # noqa: F401, whose import makes the operations known

    return torch.ops.torchvision


def bind_average(a: Arguments, operand: str) -> tuple[LinearOperation, None, None]:
    form = tuple(a[argument.name] for argument in _torchvision().roi_align.default._schema.arguments[2:])
    return BoxAverage(a["rois"], form), None, None


def batch_of_boxes(position: Any, a: Arguments) -> Any:
    """Boxes stand where the batch was, each of the item that it lies in."""
    return batch_axis.selected(position, 0, items_of_boxes(a["rois"]), a["input"].shape, a["batch"])


def lower_largest(input: Any, rois: Any, spatial_scale: float, pooled_height: Any, pooled_width: Any) -> Any:
    """``roi_pool``: each bin's value is picked by its place; that of an empty bin is zero."""
    places = largest_places(input, rois, spatial_scale, pooled_height, pooled_width)
    flat = aten.index_select.default(aten.flatten.using_ints(input, 2, -1), 0, items_of_boxes(rois))
    picked = aten.gather.default(flat, 2, torch.clamp(torch.flatten(places, 2), min=0))
    picked = aten.unflatten.int(picked, -1, [pooled_height, pooled_width])
    return aten.masked_fill.Scalar(picked, torch.lt(places, 0), 0.0), places


def lower_position_sensitive(input: Any, rois: Any, spatial_scale: float, pooled_height: Any, pooled_width: Any,
                             sampling_ratio: int) -> Any:
    """``ps_roi_align``: each bin of a box has channels of its own, of which the others' bins are left out."""
    bins = [pooled_height, pooled_width]
    averages = _torchvision().roi_align.default(input, rois, spatial_scale, *bins, sampling_ratio, True)
    own = aten.unflatten.int(averages, 1, [-1, *bins])
    own = aten.diagonal.default(aten.diagonal.default(own, 0, 2, 4), 0, 2, 3)
    return own, None


OPERATIONS = [
    Operation(
        _torchvision().roi_align.default, Kind.LINEAR, operands=("input",), bind=bind_average, sign=Sign.KEEPS,
        batch=batch_of_boxes, channels=behind_batch,
    ),
]

COMPOSED = [
    Composed(lower_largest, aten={_torchvision().roi_pool.default: None}),
    Composed(lower_position_sensitive, aten={_torchvision().ps_roi_align.default: None}),
]
