"""Any batch for a network in a file of ONNX that was written for one item.

Exporters write the batch of their example into the file unless they are told otherwise. Where it is one, the sizes that
hold it are found by a run with two items: those that two items do not fit are let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Reshape(nn.Module):
    """A reshape to sizes that the file tells: 0 is the size of the input's axis, −1 what is left.

    Args:
        sizes: the sizes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def forward(self, value: Tensor) -> Tensor:
        """``value`` in these sizes."""
        return value.reshape([value.shape[axis] if size == 0 else size for axis, size in enumerate(self.sizes)])


class Concat(nn.Module):
    """Values side by side along an axis, those that are constant once for each item.

    Args:
        axis: the axis.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.once: tuple[int, ...] = ()
        self.like = self.items = 0

    def forward(self, *values: Tensor) -> Tensor:
        """The values, joined."""
        spread = list(values)
        for number in self.once:
            shape = list(values[number].shape)
            shape[self.items] = values[self.like].shape[self.items]
            spread[number] = values[number].expand(shape)
        return torch.cat(spread, self.axis)


class _Run(NamedTuple):
    """What a module that is settled here was given in a run, in sizes, and what it made."""

    given: list[list[int]]
    made: Tensor


def of_one_item(file: Any, items: Sequence[bool]) -> None:
    """Write a batch of one into a file, whose sizes are then numbers.

    Args:
        file: the file, changed in place.
        items: for each input whether its first axis is the batch.
    """
    graph = file.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for value, own in zip(inputs, items, strict=True):
        if own:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def free_batch(module: nn.Module, items: Sequence[bool], first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Let a module that was written for one item take several.

    Args:
        module: the module; its reshapes and concatenations are changed in place.
        items: for each input whether its first axis is the batch.
        first: inputs for one item.
        second: those for another.

    Raises:
        Exception: any, if two items do not fit.
    """
    fixed = [each for each in module.modules() if isinstance(each, Reshape | Concat)]
    alone = [_alone(module, inputs, fixed) for inputs in (first, second)]

    def settle(each: Any, values: tuple[Tensor, ...]) -> None:
        runs = [run[each] for run in alone]
        if isinstance(each, Reshape):
            each.sizes = _sizes(values[0], each.sizes, runs)
        else:
            _spread(each, values, runs[0])

    both = [torch.cat([one, two]) if own else one for own, one, two in zip(items, first, second, strict=True)]
    _call(module, both, [each.register_forward_pre_hook(settle) for each in alone[0]])


def _alone(module: nn.Module, inputs: Sequence[Tensor], fixed: Sequence[nn.Module]) -> dict[nn.Module, _Run]:
    found: dict[nn.Module, _Run] = {}

    def note(each: nn.Module, values: tuple[Tensor, ...], made: Tensor) -> None:
        found[each] = _Run([list(value.shape) for value in values], made)

    _call(module, inputs, [each.register_forward_hook(note) for each in fixed])
    return found


def _call(module: nn.Module, inputs: Sequence[Tensor], hooks: Sequence[Any]) -> None:
    with ExitStack() as stack, torch.no_grad():
        for hook in hooks:
            stack.callback(hook.remove)
        module(*inputs)


def _spread(concat: Concat, values: Sequence[Tensor], alone: _Run) -> None:
    grown = [
        next((axis for axis, size in enumerate(value.shape) if size != old[axis]), None)
        for value, old in zip(values, alone.given, strict=True)
    ]
    found = [(number, axis) for number, axis in enumerate(grown) if axis is not None]
    if found and len(found) < len(grown):
        concat.like, concat.items = found[0]
        concat.once = tuple(number for number, axis in enumerate(grown) if axis is None)


def _sizes(both: Tensor, sizes: list[int], alone: Sequence[_Run]) -> list[int]:
    """The sizes of a reshape, −1 in the place of the axis in which items then lie.

    Several axes may be: an axis that was for items alone is best, then one that items divide into blocks, then one in
    which they take turns. Features are the last axis as a rule, and a product needs to find all of them there.
    """
    made = list(alone[0].made.shape)
    if list(both.shape) == alone[0].given[0]:
        return sizes
    pair = [run.made for run in alone]
    found: list[tuple[bool, bool, bool, int]] = []
    for axis, size in enumerate(made):
        free = [-1 if number == axis else size for number, size in enumerate(made)]
        each = both.reshape(free)
        blocks, turns = torch.cat(pair, axis), torch.stack(pair, axis + 1).flatten(axis, axis + 1)
        for way in (blocks, turns):
            if each.shape == way.shape and torch.allclose(each.double(), way.double(), rtol=1e-3, atol=1e-4):
                found.append((size != 1, axis == len(made) - 1, way is turns, axis))
    if not found:
        raise ValueError(f"two items do not fit sizes {sizes}")
    *_, place = min(found)
    return [-1 if number == place else size for number, size in enumerate(made)]
