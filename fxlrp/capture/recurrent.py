"""Recurrent layers while a model is read: what they return, and what they do with packed sequences.

torch packs a batch of sequences without their padding, one step of all items after the other, so that how many items
a step has depends on values. While torch.export reads a model, a packed sequence holds the padded one instead, and
the lengths where the sizes of the steps would be. It is a ``PackedSequence`` still, and what works on each of its
entries (an embedding, a dropout) works on those of the padded one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from fxlrp.vocabulary.recurrent import cell_of


def returned(module: nn.Module, value: Any) -> Any:
    """What a call of a module gave, as the tuples that a recurrent layer returns: code asks whether it got some."""
    if not (isinstance(value, fx.Proxy) and isinstance(module, nn.RNNBase | nn.LSTMCell)):
        return value
    first, last = getitem(value, 0), getitem(value, 1)
    return first, ((getitem(last, 0), getitem(last, 1)) if isinstance(module, nn.LSTM) else last)


@dataclass(frozen=True)
class Lengths:
    """Stands for the ``batch_sizes`` of a packed sequence whose data are padded, (batch, steps, …).

    Attributes:
        lengths: (batch,), how many steps each item has.
    """

    lengths: Tensor

    @property
    def device(self) -> torch.device:
        """Where ``PackedSequence`` wants it to be."""
        return torch.device("cpu")


def _is_padded(value: Any) -> bool:
    return isinstance(value, PackedSequence) and isinstance(value.batch_sizes, Lengths)


def _pack(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:
    """``pack_padded_sequence``: items stay in their order, sorted or not."""
    lengths = lengths.to(torch.int64) if isinstance(lengths, Tensor) else torch.as_tensor(lengths, dtype=torch.int64)
    return PackedSequence(input if batch_first else input.transpose(0, 1), Lengths(lengths))  # type: ignore[arg-type]


def _pad(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """``pad_packed_sequence``: as long as what was packed, unless a length is given."""
    data, lengths = sequence.data, sequence.batch_sizes.lengths  # type: ignore[attr-defined]
    padding = torch.arange(data.shape[1], device=data.device) >= lengths.to(data.device)[:, None]
    data = data.masked_fill(padding.reshape(*padding.shape, *[1] * (data.dim() - 2)), padding_value)
    if total_length is not None:
        data = F.pad(data, [*[0] * (2 * data.dim() - 4), 0, total_length - data.shape[1]], value=padding_value)
    return data if batch_first else data.transpose(0, 1), lengths


_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pack_padded_sequence": (rnn.pack_padded_sequence, _pack),
    "pad_packed_sequence": (rnn.pad_packed_sequence, _pad),
}


def packing_functions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By function of torch what stands in its place while the calling thread captures; it passes others' calls on."""
    return {function: of_thread(function, ours, threading.get_ident()) for function, ours in _FUNCTIONS.values()}


def of_thread(function: Callable[..., Any], ours: Callable[..., Any], thread: int) -> Callable[..., Any]:
    """``ours`` in one thread, ``function`` in all others."""

    @functools.wraps(function)
    def followed(*args: Any, **kwargs: Any) -> Any:
        return (ours if threading.get_ident() == thread else function)(*args, **kwargs)

    return followed


class _Kept:
    """A method of the tensors of an export that makes a list or an array of one, which has no size yet.

    The lengths of items stay a tensor in the thread that captures; all else is as it was.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.thread = method, threading.get_ident()

    def __get__(self, tensor: Any, owner: Any) -> Any:
        lengths = tensor is not None and tensor.dim() == 1 and isinstance(tensor.shape[0], torch.SymInt)
        if lengths and not tensor.is_floating_point() and threading.get_ident() == self.thread:
            return lambda *args, **kwargs: tensor
        return self.method.__get__(tensor, owner)


_LISTS = {name: vars(FakeTensor).get(name) for name in ("tolist", "numpy")}
"""The methods, as far as the tensors of an export have them of their own."""


@contextmanager
def lengths_kept(model: nn.Module) -> Iterator[None]:
    """Within, ``lengths.tolist()`` and ``lengths.numpy()`` are the lengths, for a model that may pack sequences."""
    names = _LISTS if any(isinstance(module, nn.RNNBase) for module in model.modules()) else {}
    try:
        for name, own in names.items():
            setattr(FakeTensor, name, _Kept(own or getattr(Tensor, name)))
        yield
    finally:
        for name, own in names.items():
            if own is not None:
                setattr(FakeTensor, name, own)
            elif name in vars(FakeTensor):
                delattr(FakeTensor, name)


class _OverPadded(nn.RNNBase):
    """A recurrent layer that takes packed sequences which hold padded ones."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not _is_padded(input):
            return super().forward(input, hx)
        cell, data = cell_of(self), input.data
        if hx is None:
            places = self.num_layers * (2 if self.bidirectional else 1)
            widths = [self.proj_size or self.hidden_size] + [self.hidden_size] * (cell == "lstm")
            states = [data.new_zeros(places, data.shape[0], width) for width in widths]
        else:
            states = list(hx) if cell == "lstm" else [hx]
        params = [weight for weights in self.all_weights for weight in weights]
        output, *final = torch.ops.fxlrp.recurrence(
            data, input.batch_sizes.lengths, states, params, cell, self.bias, self.num_layers, self.bidirectional
        )
        packed = PackedSequence(output, input.batch_sizes)
        return packed, tuple(final) if cell == "lstm" else final[0]


def take_padded(doubles: Iterator[nn.Module]) -> None:
    """Let the recurrent layers among some doubles, of which nobody else knows, take such sequences."""
    for module in doubles:
        if isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
            # Behind the model's own classes, whose forward may call that of torch.
            base = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind))
            over = type(base.__name__, (_OverPadded, base), {})
            kind = type(module)
            module.__class__ = over if kind is base else type(kind.__name__, (kind, over), {})
