"""Targets: the classes to explain, as a caller gives them and as a program takes them."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import TargetError

LARGEST = 2**63
"""Class numbers are 64-bit integers."""


def separate_target(
    counts: tuple[float, float], inputs: tuple[Any, ...], named: dict[str, Any], target: Any
) -> tuple[tuple[Any, ...], Any]:
    """Inputs and target, where a target may follow the inputs as the last positional argument.

    Args:
        counts: how many inputs the model cannot do without, and how many it takes by position.
        inputs: the positional arguments.
        named: the arguments by name.
        target: the target that was given by name.
    """
    if target is None and _ends_with_target(counts, inputs, named):
        return inputs[:-1], inputs[-1]
    return inputs, target


def _ends_with_target(counts: tuple[float, float], inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether the last positional argument is one more than the inputs, and so the target."""
    required, most = counts
    if len(inputs) + len(named) <= required or len(inputs) < 2:
        return False
    last = inputs[-1]
    # Several classes per item, or a list of them, could as well be an optional input.
    classes = isinstance(last, Tensor) and not last.is_floating_point() and last.dim() < 2
    return len(inputs) > most or classes or (isinstance(last, int) and not isinstance(last, bool))


def check_one_target(target: Tensor | None, what: str) -> None:
    """Raise where several targets per item are given for what takes one.

    Raises:
        TargetError: so it is.
    """
    if target is not None and target.dim() == 2:
        raise TargetError(f"{what} is of one target per item: ask for one at a time")


def check_target(
    target: Any, batch: int, classes: int | None, device: torch.device, *, noun: str = "target"
) -> Tensor | None:
    """The target as an integer tensor: (batch,), or (batch, targets) where several are given an item; or ``None``.

    ``noun`` is what messages call it.

    Raises:
        TargetError: it is no class, or not one per item, or as many for each.
    """
    if target is None:
        return None
    if type(target).__module__ == "numpy" and getattr(target, "ndim", 0) > 0:
        target = torch.as_tensor(target)
    if isinstance(target, list | tuple | range):
        if not target or not all(_is_number(entry) for entry in target):
            raise TargetError(f"a {type(target).__name__} of {noun}s holds class numbers, at least one, not {target!r}")
        wanted = torch.tensor([int(entry) for entry in target], dtype=torch.long, device=device).expand(batch, -1)
    elif isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            dtype = str(target.dtype).removeprefix("torch.")
            raise TargetError(f"a {noun} tensor holds class numbers as integers, not {dtype}")
        if target.device.type == "meta" or target.layout is not torch.strided:
            raise TargetError(f"a {noun} tensor holds class numbers; this one is sparse, or has no values (meta)")
        if target.dim() == 0:
            target = target.expand(batch)
        if target.dim() not in (1, 2) or target.shape[0] != batch or 0 in target.shape:
            raise TargetError(
                f"a {noun} tensor has one class per item, shape ({batch},), or several, ({batch}, {noun}s), "
                f"not {tuple(target.shape)}"
            )
        wanted = target.to(device=device, dtype=torch.long)
    elif _is_number(target):
        wanted = torch.full((batch,), int(target), dtype=torch.long, device=device)
    else:
        raise TargetError(
            f"a {noun} is None, an int, several ints or an integer tensor, not {type(target).__name__}"
        )
    if classes is not None and not is_compiling():
        low, high = int(wanted.min()), int(wanted.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise TargetError(f"class {wrong} is out of range: the model has {classes} classes, 0 to {classes - 1}")
    return wanted


def check_against(
    against: Any, target: Tensor | None, batch: int, classes: int | None, device: torch.device
) -> Tensor:
    """The classes to explain a target against, (batch, rivals).

    Args:
        against: an int, several ints for every item, or an integer tensor (batch,) or (batch, rivals).
        target: the classes that are explained, where they are known.
        batch: the number of items.
        classes: that of the model; ``None``: its output has no classes.
        device: of the inputs.

    Raises:
        TargetError: it is no class, not one or more per item, or the target itself.
    """
    if classes is None and not is_compiling():
        raise TargetError("against= compares classes, and the output of this model is not (batch, classes)")
    rivals = check_target(against, batch, classes, device, noun="rival")
    assert rivals is not None
    rivals = rivals.unsqueeze(1) if rivals.dim() == 1 else rivals
    if target is not None and not is_compiling():
        equal = (target.reshape(batch, -1, 1) == rivals.unsqueeze(1)).nonzero()
        if len(equal):
            item, _, rival = equal[0].tolist()
            raise TargetError(f"against= holds class {int(rivals[item, rival])}, which is explained itself")
    return rivals


def check_predicted(predicted: Tensor | None, rivals: Tensor) -> None:
    """Check that the predicted class, (batch,), is none of the rivals, (batch, rivals).

    Raises:
        TargetError: it is one of them.
    """
    if predicted is None:
        return
    equal = (predicted.unsqueeze(1) == rivals).nonzero()
    if len(equal):
        item, rival = equal[0].tolist()
        raise TargetError(
            f"against= holds class {int(rivals[item, rival])}, which the model predicts for item {item}, so that it "
            "would be explained against itself: give target="
        )


def _is_number(value: Any) -> bool:
    """Whether a value is a whole number that a class may have."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    if not -LARGEST <= int(value) < LARGEST:
        raise TargetError(f"class {value} is out of range")
    return True
