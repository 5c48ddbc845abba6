"""The tensors of graphs: which there are, and whether they were written to since they were last looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

_SAMPLES = 16


def tensor_names(graph: fx.Graph) -> list[str]:
    """The dotted names of the parameters, buffers and constants that a graph reads."""
    return sorted({str(node.target) for node in graph.nodes if node.op == "get_attr"})


def tensor_at(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or constant of a dotted name."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


class _Seen(NamedTuple):
    """A tensor as it was: its version, its place, some of its elements in place and as they were."""

    tensor: Tensor
    version: int
    place: int
    sample: Any
    taken: bytes


class Watch:
    """Tensors, and what tells whether they were replaced or written to.

    torch counts writes to a tensor, but not those through ``.data``. On the CPU a sample of each
    tensor's elements sees those that write all of it, as the usual ones do.

    Args:
        tensors: such as :func:`watchable` takes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._seen = [_look(tensor) for tensor in tensors]

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are those that were seen, and as they were."""
        return len(tensors) == len(self._seen) and all(map(_as_seen, tensors, self._seen))


def watchable(tensors: Sequence[Tensor]) -> bool:
    """Whether torch counts the writes to all: not to inference tensors, nor to those that stand for others."""
    return all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference() for tensor in tensors)


def _as_seen(tensor: Tensor, seen: _Seen) -> bool:
    same = tensor is seen.tensor and tensor._version == seen.version and tensor.data_ptr() == seen.place
    return same and (seen.sample is None or seen.sample.tobytes() == seen.taken)


def _look(tensor: Tensor) -> _Seen:
    sample: Any = None
    known = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    if known and tensor.numel():
        step = max(1, tensor.numel() // _SAMPLES)
        if _fills(tensor):
            sample = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))[::step].numpy()
        else:
            sample = _Scattered(tensor.detach().numpy(), step)
    return _Seen(tensor, tensor._version, tensor.data_ptr(), sample, b"" if sample is None else sample.tobytes())


class _Scattered(NamedTuple):
    """Elements of an array of any layout, as they are when they are asked for."""

    array: Any
    step: int

    def tobytes(self) -> bytes:
        taken: bytes = self.array.flat[:: self.step].tobytes()
        return taken


def _fills(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, in whatever order."""
    return tensor.is_contiguous() or any(
        tensor.dim() == rank and tensor.is_contiguous(memory_format=form)
        for rank, form in ((4, torch.channels_last), (5, torch.channels_last_3d))
    )
