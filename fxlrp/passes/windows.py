"""Windows of convolutions: which overlap, and whether a model reads pictures patch by patch, as a ViT does."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.facts import facts
from fxlrp.passes.layers import weight_shape
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.operation import per_axis

Patch = tuple[int, int]
"""Height and width, in pixels."""

_KEEPS_PLACES = (Kind.POINTWISE, Kind.NORMALISATION)
"""What an input may go through before its patches are read, such as a normalisation of its channels."""


def patch_of(placeholder: fx.Node, forward: fx.GraphModule) -> Patch | None:
    """The patches in which all layers read a picture, an input of an annotated forward graph.

    A patch is what one step of a convolution sees that neither overlaps nor pads. How its relevance is shared among
    its pixels says nothing of place: one product mixes them all.

    Returns:
        ``None`` where a pixel is read by itself, or where readers differ.
    """
    found: set[Patch | None] = set()
    waiting = [placeholder]
    while waiting:
        for reader in waiting.pop().users:
            if reader.op == "output" or not facts(reader).signal:
                continue
            if facts(reader).kind in _KEEPS_PLACES and len(facts(reader).operands) == 1:
                waiting.append(reader)
            else:
                found.add(_read_by(reader, forward))
    return found.pop() if len(found) == 1 else None


def overlaps(node: fx.Node, forward: fx.GraphModule) -> bool:
    """Whether a node is a convolution whose windows overlap, as those of patches and of single places do not."""
    operation, shape = facts(node).operation, weight_shape(node, forward)
    if operation is None or not operation.is_convolution or shape is None:
        return False
    arguments: dict[str, Any] = operation.arguments(node.args, node.kwargs)
    steps = per_axis(arguments.get("stride", 1), len(shape) - 2)
    return any(length > step for length, step in zip(shape[2:], steps, strict=True))


def _read_by(node: fx.Node, forward: fx.GraphModule) -> Patch | None:
    operation, shape = facts(node).operation, weight_shape(node, forward)
    if operation is None or operation.name != "conv2d" or shape is None:
        return None
    arguments: dict[str, Any] = operation.arguments(node.args, node.kwargs)
    stride, padding, dilation = (arguments[name] for name in ("stride", "padding", "dilation"))
    window = list(shape[2:])
    plain = padding in ("valid", 0, [0], [0, 0], (0,), (0, 0)) and per_axis(dilation, 2) == [1, 1]
    return (window[0], window[1]) if plain and per_axis(stride, 2) == window != [1, 1] else None
