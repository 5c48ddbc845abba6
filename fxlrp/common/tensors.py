"""The tensors that a graph reads: their names, and whether any of them has changed since an earlier look."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

_SAMPLES = 16
_WHOLE = 16_384
"""Tensors of so many elements are compared whole; of larger ones a sample is."""


_ENCODED = "fxlrp_name_"

DERIVED, START = "derived", "start"
"""What a program calls its own modules: of weights that are computed once, and of a start that is a module."""


def safe_name(name: str) -> str:
    """The dotted name of a tensor as a graph may bear it: torch.fx writes names into Python code as they are.

    Parts that are no names of Python, mean something to it, or are attributes of every ``GraphModule``, such as
    ``graph`` and ``code``, or of a program are written in hexadecimal. :func:`plain_name` undoes it.
    """
    return ".".join(part if _is_safe(part) else _ENCODED + part.encode().hex() for part in name.split("."))


def plain_name(name: str) -> str:
    """The name that a tensor has in the model, from that in a graph."""
    return ".".join(
        bytes.fromhex(part.removeprefix(_ENCODED)).decode() if part.startswith(_ENCODED) else part
        for part in name.split(".")
    )


def _is_safe(part: str) -> bool:
    word = part.isascii() and part.isidentifier() and not keyword.iskeyword(part)
    number = part.isascii() and part.isdecimal()
    return number or (word and not part.startswith(_ENCODED) and part not in _taken())


@cache
def _taken() -> frozenset[str]:
    """The attributes of any program: a child or a tensor of such a name would take their place."""
    return frozenset((DERIVED, START, *dir(fx.GraphModule(nn.Module(), fx.Graph()))))


def is_packed(tensor: Tensor) -> bool:
    """Whether a weight is kept in fewer bits, by a tensor class that makes floating point numbers of it."""
    return type(tensor) not in (Tensor, nn.Parameter) and type(tensor).dequantize is not Tensor.dequantize


def dequantized(tensor: Tensor) -> Tensor:
    """The floating point numbers of a weight that is kept in fewer bits, made when they are needed."""
    numbers: Tensor = tensor.dequantize()
    return numbers


def dense(tensor: Tensor) -> Tensor:
    """A tensor with its zeros, where it is kept without."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


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
    """A tensor as it was at one time.

    Attributes:
        tensor: the tensor itself.
        version: torch's counter of writes to it.
        address: of its memory.
        sample: a view of some of its elements, or ``None``.
        copied: the bytes of the sample at that time.
    """

    tensor: Tensor
    version: int
    address: int
    sample: Any
    copied: bytes


class Watch:
    """Tensors as they are now, to learn later whether they were replaced or written to.

    torch counts writes to a tensor, but not those through ``.data``. On the CPU the elements of small tensors are
    compared too, and of large ones a sample, which notices writes to the whole tensor, the usual kind.

    Args:
        tensors: for which :func:`watchable` is true.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._seen = [_look(tensor) for tensor in tensors]

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors with the same values."""
        return len(tensors) == len(self._seen) and all(map(_as_seen, tensors, self._seen))


def watchable(tensors: Sequence[Tensor]) -> bool:
    """Whether torch counts the writes to all of them; not to inference tensors, tensor subclasses and sparse ones."""
    return all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_inference()
        for tensor in tensors
    )


def _as_seen(tensor: Tensor, seen: _Seen) -> bool:
    unchanged = tensor is seen.tensor and tensor._version == seen.version and tensor.data_ptr() == seen.address
    return unchanged and (seen.sample is None or seen.sample.tobytes() == seen.copied)


def _look(tensor: Tensor) -> _Seen:
    sample: Any = None
    can_sample = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    if can_sample and tensor.numel():
        step = 1 if tensor.numel() <= _WHOLE else tensor.numel() // _SAMPLES
        if _is_dense(tensor):
            sample = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))[::step].numpy()
        else:
            sample = _Scattered(tensor.detach().numpy(), step)
    return _Seen(tensor, tensor._version, tensor.data_ptr(), sample, b"" if sample is None else sample.tobytes())


class _Scattered(NamedTuple):
    """Some elements of an array of any layout; they are read at each call."""

    array: Any
    step: int

    def tobytes(self) -> bytes:
        elements: bytes = self.array.flat[:: self.step].tobytes()
        return elements


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, in any order."""
    return tensor.is_contiguous() or any(
        tensor.dim() == rank and tensor.is_contiguous(memory_format=form)
        for rank, form in ((4, torch.channels_last), (5, torch.channels_last_3d))
    )
