"""Fourier transforms as matrices of cosines and sines, and what else spectra are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fxlrp.steps.declaration import primitive
from fxlrp.steps.linear_operation import FixedOperation, Weight
from fxlrp.steps.routing import fold_axis

Form = Literal["full", "half", "mirrored"]
"""What a transform gives or takes: all frequencies, those of a real signal that are not told by others, or a real
signal from such a half."""


@primitive
def fourier_matrix(
    x: Tensor, dim: int, n: int | None, form: Form, inverse: bool, power: float, waves: Sequence[str]
) -> Tensor:
    """The matrix by which a vector along ``dim`` of ``x`` is multiplied from the left to give a part of its transform.

    Args:
        x: asked for its size and type alone.
        dim: the axis that is transformed.
        n: the length of the transform, to which ``x`` is cut or filled up with zeros; ``None``: that of ``x``.
        form: what it gives or takes.
        inverse: the sign of the angles.
        power: the matrix is divided by ``n`` to this power.
        waves: for each part of ``x`` that the vector holds, ``"cos"``, ``"sin"`` or ``"-sin"``.
    """
    size = x.shape[dim]
    if n is None:
        n = 2 * (size - 1) if form == "mirrored" else size
    known = n // 2 + 1 if form == "mirrored" else n
    rows = torch.arange(size, device=x.device)
    columns = torch.arange(n // 2 + 1 if form == "half" else n, device=x.device)
    weights = (rows < known).to(x.dtype) / n**power
    if form == "mirrored":  # a frequency stands for its negative as well, where that is another one
        weights = weights * torch.where((2 * rows) % n == 0, 1, 2)
    turns = (rows[:, None] * columns) % n
    cosine, sine = (table.to(x.dtype)[turns] * weights[:, None] for table in _waves(n, x.device))
    sine = sine if inverse else -sine
    blocks = {"cos": cosine, "sin": sine, "-sin": -sine}
    return torch.cat([blocks[wave] for wave in waves])


def _waves(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the n-th parts of a turn; exactly zero where they are, so that nothing flows there."""
    parts = torch.arange(n, device=device)
    angles = parts.to(torch.float64) * (2 * math.pi / n)
    return (
        angles.cos().masked_fill((4 * parts) % (2 * n) == n, 0),
        angles.sin().masked_fill((2 * parts) % n == 0, 0),
    )


@primitive
def real_part(z: Tensor) -> Tensor:
    """The real part of a constant, which may be real."""
    return torch.view_as_real(z.resolve_conj())[..., 0] if z.is_complex() else z


@primitive
def imaginary_part(z: Tensor) -> Tensor:
    """The imaginary part of a constant, which may be real."""
    return torch.view_as_real(z.resolve_conj())[..., 1] if z.is_complex() else torch.zeros_like(z)


@primitive
def complex_of(re: Tensor | None, im: Tensor | None) -> Tensor:
    """A complex tensor, for what is only asked or returned; ``None`` is zero."""
    some = im if re is None else re
    assert some is not None
    return torch.complex(*(torch.zeros_like(some) if part is None else part for part in (re, im)))


@primitive
def frame_window(x: Tensor, window: Tensor | None, length: int, frame: int) -> Tensor:
    """A window of ``length``, ones where it is ``None``, in the middle of a frame of zeros."""
    window = torch.ones(length, dtype=x.dtype, device=x.device) if window is None else window
    before = (frame - length) // 2
    return torch.nn.functional.pad(window, [before, frame - length - before])


@primitive
def window_envelope(frames: Tensor, window: Tensor, step: int) -> Tensor:
    """The sum of the squared windows of all ``frames``, (batch, frames, frame), where each is put."""
    squares = window.square().expand(frames.shape[1], -1)
    size = window.shape[0]
    return fold_axis(squares, torch.Size([size + step * (frames.shape[1] - 1)]), 0, size, step)


@dataclass(frozen=True)
class OverlapAdd(FixedOperation):
    """Windows along the axis ``dim``, their elements being last, added up: the transpose of ``Tensor.unfold``."""

    sizes: Any
    dim: int
    size: int
    step: int

    def apply(self, x: Tensor, weight: Weight) -> Tensor:
        return fold_axis(x, self.sizes, self.dim, self.size, self.step)

    def transpose(self, s: Tensor, weight: Weight, x: Tensor) -> Tensor:
        return windows(s, self.dim, self.size, self.step)


@primitive(linear="first")
def windows(s: Tensor, dim: int, size: int, step: int) -> Tensor:
    """``Tensor.unfold``."""
    return s.unfold(dim, size, step)
