"""Features of boxes: linear in the image, the boxes held constant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, LinearOperation, Weight
from fxlrp.steps.primitives import squared

Form = tuple[float | int | bool, ...]
"""What ``torchvision.ops.roi_align`` takes behind its boxes."""


@dataclass(frozen=True)
class BoxAverage(FixedOperation):
    """``torchvision.ops.roi_align``: averages of sampled places; ``boxes`` are (boxes, item and corners)."""

    boxes: Tensor
    form: Form

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return box_average(x, self.boxes, self.form)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return box_average_transpose(s, x, self.boxes, self.form)

    def flat(self) -> LinearOperation:
        return ChangedBoxAverage(self.boxes, self.form, "ones")

    def squared(self) -> LinearOperation:
        return ChangedBoxAverage(self.boxes, self.form, "squared")


@dataclass(frozen=True)
class ChangedBoxAverage(FixedOperation):
    """:class:`BoxAverage` with its weights made ``"ones"`` or ``"squared"``: a matrix for each box."""

    boxes: Tensor
    form: Form
    change: str

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return changed_average(x, self.boxes, self.form, self.change)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return changed_average_transpose(s, x, self.boxes, self.form, self.change)


@primitive
def items_of_boxes(boxes: Tensor) -> Tensor:
    """The item of the batch that each box lies in: (boxes,)."""
    return boxes[:, 0].long()


@primitive
def box_average(x: Tensor, boxes: Tensor, form: Form) -> Tensor:
    """``torchvision.ops.roi_align``."""
    return torch.ops.torchvision.roi_align(x, boxes, *form)


@primitive(linear="first")
def box_average_transpose(s: Tensor, x: Tensor, boxes: Tensor, form: Form) -> Tensor:
    """The transpose of :func:`box_average`, in the shape of ``x``."""
    scale, rows, columns, *sampling = form
    back = torch.ops.torchvision._roi_align_backward
    return back(s.contiguous(), boxes, scale, rows, columns, *x.shape, *sampling)


def _weights(x: Tensor, boxes: Tensor, form: Form, change: str) -> Tensor:
    """The changed weights of every place of the image for every bin: (boxes, places, rows, columns)."""
    size = x.shape[-2:].numel()
    units = torch.eye(size, dtype=x.dtype, device=x.device).reshape(1, size, *x.shape[-2:])
    weights = box_average(units, torch.cat([torch.zeros_like(boxes[:, :1]), boxes[:, 1:]], 1), form)
    return squared(weights) if change == "squared" else (weights != 0).to(x.dtype)


@primitive
def changed_average(x: Tensor, boxes: Tensor, form: Form, change: str) -> Tensor:
    """:func:`box_average` with its weights changed element by element."""
    images = x.flatten(2).index_select(0, items_of_boxes(boxes))
    return torch.einsum("kcp,kpij->kcij", images, _weights(x, boxes, form, change))


@primitive(linear="first")
def changed_average_transpose(s: Tensor, x: Tensor, boxes: Tensor, form: Form, change: str) -> Tensor:
    """The transpose of :func:`changed_average`, in the shape of ``x``."""
    shares = torch.einsum("kcij,kpij->kcp", s, _weights(x, boxes, form, change))
    return shares.new_zeros(x.flatten(2).shape).index_add(0, items_of_boxes(boxes), shares).reshape(x.shape)


@primitive
def largest_places(x: Tensor, boxes: Tensor, scale: float, rows: int, columns: int) -> Tensor:
    """Where in its channel each bin of ``torchvision.ops.roi_pool`` has its largest value; −1 where it is empty."""
    return torch.ops.torchvision.roi_pool(x, boxes, scale, rows, columns)[1].long()

