"""Conditions as a caller gives them, and the masks that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.common.errors import ConditionError
from fxlrp.passes.channel_axes import Shapes, channel_axes
from fxlrp.passes.conditions import Point


@dataclass(frozen=True)
class Conditions:
    """What to keep of the relevance at the outputs of modules.

    Attributes:
        conditions: for each, by module what it keeps.
        several: whether they are slices of one call, and not a single one.
    """

    conditions: tuple[Mapping[str, Any], ...]
    several: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module that is named, once, in alphabetical order."""
        return tuple(sorted({name for condition in self.conditions for name in condition}))


def read_conditions(conditions: Any) -> Conditions | None:
    """Understand ``conditions=``; ``None`` where there are none.

    Raises:
        ConditionError: it is neither a dict nor a list of dicts by module name, or an entry is neither channel
            numbers nor a mask.
    """
    if conditions is None:
        return None
    several = isinstance(conditions, list | tuple)
    given = tuple(conditions) if several else (conditions,)
    for condition in given:
        if not isinstance(condition, Mapping) or not all(isinstance(name, str) for name in condition):
            raise ConditionError(
                "conditions= is a dict from module names to channels, or a list of such dicts, "
                f"not {'a list with ' if several else ''}{type(condition).__name__}"
            )
        for name, kept in condition.items():
            _check_entry(name, kept)
    if not any(given):
        raise ConditionError("conditions= names no module: leave it out to explain without")
    return Conditions(given, several)


def _check_entry(name: str, kept: Any) -> None:
    if isinstance(kept, Tensor):
        if not (kept.dtype == torch.bool or kept.is_floating_point()):
            raise ConditionError(
                f"the mask at {name!r} holds booleans or floating point numbers, not {kept.dtype}: "
                "channel numbers are given as a list"
            )
        if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
            raise ConditionError(f"the mask at {name!r} holds NaN or infinity")
    elif not isinstance(kept, list | tuple | range) or not all(
        isinstance(channel, Integral) and not isinstance(channel, bool) for channel in kept
    ):
        raise ConditionError(f"the condition at {name!r} is a list of channel numbers, or a mask, not {kept!r}")


def count_slices(conditions: Conditions | None, target: Tensor | None) -> int | None:
    """The number of slices; ``None``: a single explanation, without an axis of slices.

    Raises:
        ConditionError: there are other numbers of conditions and of targets.
    """
    by_target = target.shape[1] if target is not None and target.dim() == 2 else None
    by_condition = len(conditions.conditions) if conditions is not None and conditions.several else None
    if by_target is not None and by_condition is not None and by_target != by_condition:
        raise ConditionError(
            f"{by_condition} conditions and {by_target} targets per item: explanation k has target k and condition k"
        )
    return by_condition if by_target is None else by_target


def masks(
    conditions: Conditions, points: Sequence[Point], graph: fx.Graph, shapes: Shapes, device: torch.device
) -> list[Tensor]:
    """The mask of each condition at each point, stacked: (conditions, ...).

    Behind the conditions a mask has the axes of the value, 1 long where it does not matter,
    or those of one item of it.

    Args:
        conditions: as read.
        points: where the program applies them.
        graph: the forward graph.
        shapes: the shapes of its values.
        device: where the masks shall be.

    Raises:
        ConditionError: a channel is out of range, no axis is that of channels, or a mask does not fit.
    """
    axes = channel_axes(graph, shapes)
    return [_mask(conditions, point, tuple(shapes[point.node]), axes[point.node]).to(device) for point in points]


def _mask(conditions: Conditions, point: Point, shape: tuple[int, ...], axis: int | None) -> Tensor:
    kept = [condition.get(point.name) for condition in conditions.conditions]
    channels = [None if isinstance(k, Tensor) or k is None else _channels(point, k, shape, axis) for k in kept]
    if not any(isinstance(k, Tensor) for k in kept):
        whole = next(c for c in channels if c is not None)
        return torch.stack([torch.ones_like(whole) if c is None else c for c in channels])
    if not point.fixed:
        raise ConditionError(
            f"at {point.name!r} the batch is not an axis of its own, {shape}: give channel numbers, not a mask"
        )
    batch = 0 if point.position is None else point.position.axis
    item = shape[:batch] + shape[batch + 1 :]
    rows = []
    for entry, mask in zip(kept, channels, strict=True):
        if isinstance(entry, Tensor):
            rows.append(_fitting(point, entry, item).expand(item))
        else:
            rows.append(torch.ones(item) if mask is None else mask.squeeze(batch).expand(item))
    return torch.stack(rows)


def _channels(point: Point, kept: Sequence[Any], shape: tuple[int, ...], axis: int | None) -> Tensor:
    """Ones at the channels, in the rank of the value."""
    if axis is None:
        raise ConditionError(
            f"which axis of the output of {point.name!r}, {shape}, is that of channels is not told by the layers "
            "before it: give a mask that broadcasts to it without the batch"
        )
    size = shape[axis]
    for channel in kept:
        if not 0 <= channel < size:
            raise ConditionError(
                f"channel {channel} of {point.name!r} is out of range: it has {size} channels, 0 to {size - 1}"
            )
    mask = torch.zeros(size)
    mask[[int(channel) for channel in kept]] = 1
    return mask.reshape([size if d == axis else 1 for d in range(len(shape))])


def _fitting(point: Point, mask: Tensor, item: tuple[int, ...]) -> Tensor:
    facing = zip(reversed(mask.shape), reversed(item), strict=False)
    if mask.dim() > len(item) or any(size not in (1, wanted) for size, wanted in facing):
        raise ConditionError(
            f"the mask at {point.name!r} has shape {tuple(mask.shape)}, and must broadcast to its output without the "
            f"batch, {item}"
        )
    return mask.detach().cpu().to(torch.promote_types(mask.dtype, torch.float32))
