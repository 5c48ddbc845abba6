"""Fourier transforms as the linear maps that they are: products with matrices of cosines and sines.

Each part of a transform is one product with both parts of what is transformed, so that every linear rule sees the
whole sum. Over several axes, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from fxlrp.common.errors import CaptureError
from fxlrp.steps.fourier import Form, OverlapAdd, fourier_matrix, frame_window, window_envelope
from fxlrp.vocabulary.channel_moves import lost
from fxlrp.vocabulary.complex_values import ComplexPair, parts, stacked
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Sign, Unsupported
from fxlrp.vocabulary.routing import lower_pad, lower_roll

aten = torch.ops.aten

MIXES = "mixes the items of a batch, and items are explained one by one"

WAVES = {"re": {"re": "cos", "im": "-sin"}, "im": {"re": "sin", "im": "cos"}}
"""What each part of a product with ``cos θ + i sin θ`` takes of each part of the other factor."""


def divided(norm: str | None, *, inverse: bool) -> float:
    """The power of its length by which a transform is divided.

    Raises:
        Unsupported: torch does not know this ``norm`` either.
    """
    powers = {"backward": (0.0, 1.0), "ortho": (0.5, 0.5), "forward": (1.0, 0.0)}
    if (norm or "backward") not in powers:
        raise Unsupported(f"norm={norm!r}")
    return powers[norm or "backward"][inverse]


def along(
    z: Any, dim: int, n: Any, form: Form = "full", *, inverse: bool, power: float,
    outputs: tuple[str, ...] = ("re", "im"),
) -> ComplexPair:  # fmt: skip
    """The transform of a real or complex value along one axis.

    Raises:
        CaptureError: the axis is the batch.
    """
    if dim == 0:
        raise CaptureError(f"a Fourier transform over the first axis {MIXES}")
    given = {name: part for name, part in zip(("re", "im"), parts(z), strict=True) if part is not None}
    behind = [part if dim == -1 else aten.transpose.int(part, dim, -1) for part in given.values()]
    vectors = behind[0] if len(behind) == 1 else aten.cat.default(behind, -1)
    results: dict[str, Any] = {"re": None, "im": None}
    for output in outputs:
        waves = [WAVES[output][name] for name in given]
        matrix = fourier_matrix(behind[0], -1, n, form, inverse, power, waves)
        result = aten.matmul.default(vectors, matrix)
        results[output] = result if dim == -1 else aten.transpose.int(result, dim, -1)
    return ComplexPair(results["re"], results["im"])


def over(form: Form, z: Any, dims: Sequence[int], sizes: Sequence[Any], *, inverse: bool, power: float) -> Any:
    """The transform over several axes; only along the last are the frequencies half of all."""
    last = partial(along, dim=dims[-1], n=sizes[-1], form=form, inverse=inverse, power=power)
    if form != "mirrored":
        z = last(z)
    for dim, n in list(zip(dims, sizes, strict=True))[-2::-1]:
        z = along(z, dim, n, inverse=inverse, power=power)
    return last(z, outputs=("re",)).re if form == "mirrored" else z


def axes(s: Any, dim: Any) -> tuple[list[int], list[Any]]:
    """The axes of a transform over several, and its length along each.

    Raises:
        CaptureError: it is over all axes.
    """
    if dim is None and s is None:
        raise CaptureError(f"a Fourier transform over all axes {MIXES}: name the others with dim=")
    dims = list(range(-len(s), 0)) if dim is None else several(dim)
    if s is None:
        return dims, [None] * len(dims)
    sizes = [s[i] for i in range(len(dims))]  # a proxy of a shape cannot be counted
    return dims, [None if isinstance(n, int) and n == -1 else n for n in sizes]


def several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value]


def transform(form: Form, *, inverse: bool) -> Callable[..., Any]:
    """The lowering of ``fft`` and its kin over one axis."""

    def lower(input: Any, n: Any = None, dim: int = -1, norm: str | None = None) -> Any:
        return over(form, input, [dim], [n], inverse=inverse, power=divided(norm, inverse=inverse))

    return lower


def transforms(form: Form, dims: tuple[int, ...] | None, *, inverse: bool) -> Callable[..., Any]:
    """The lowering of ``fftn`` and its kin, over ``dims`` where nothing else is said."""

    def lower(input: Any, s: Any = None, dim: Any = dims, norm: str | None = None) -> Any:
        return over(form, input, *axes(s, dim), inverse=inverse, power=divided(norm, inverse=inverse))

    return lower


POWERS = (0.0, 0.5, 1.0)
"""What ATen calls 0, 1 and 2."""


def lower_r2c(self: Any, dim: Any, normalization: int, onesided: bool) -> Any:
    form: Form = "half" if onesided else "full"
    return over(form, self, dim, [None] * len(dim), inverse=False, power=POWERS[normalization])


def lower_c2c(self: Any, dim: Any, normalization: int, forward: bool) -> Any:
    return over("full", self, dim, [None] * len(dim), inverse=not forward, power=POWERS[normalization])


def lower_c2r(self: Any, dim: Any, normalization: int, last_dim_size: Any) -> Any:
    sizes = [*[None] * (len(dim) - 1), last_dim_size]
    return over("mirrored", self, dim, sizes, inverse=True, power=POWERS[normalization])


def shift(*, back: bool) -> Callable[..., Any]:
    """The lowering of ``fftshift``, by half of each axis, and of the way back."""

    def lower(input: Any, dim: Any = None) -> Any:
        if dim is None:
            raise CaptureError(f"a shift over all axes {MIXES}: name the others with dim=")
        dims = several(dim)
        return lower_roll(input, [(input.shape[axis] + back) // 2 for axis in dims], dims)

    return lower


def lower_stft(
    input: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Any = None,
    center: bool = True, pad_mode: str = "reflect", normalized: bool = False, onesided: bool | None = None,
    return_complex: bool | None = None, align_to_window: bool | None = None,
) -> Any:  # fmt: skip
    """Windows of the series (batch, time), each transformed: (batch, frequencies, windows)."""
    length, hop = win_length or n_fft, hop_length or n_fft // 4
    if isinstance(window, ComplexPair):
        raise Unsupported("an STFT with a complex window")
    real = not isinstance(input, ComplexPair)
    if center:
        input = lower_pad(input, [n_fft // 2, n_fft // 2], pad_mode)
    frames = aten.unfold.default(input, -1, n_fft, hop)
    if window is not None or length < n_fft:
        like = frames.some if isinstance(frames, ComplexPair) else frames
        frames = aten.mul.Tensor(frames, frame_window(like, window, length, n_fft))
    form: Form = "half" if real and onesided is not False else "full"
    spectrum = along(frames, -1, None, form, inverse=False, power=0.5 if normalized else 0.0)
    spectrum = aten.transpose.int(spectrum, -2, -1)
    return spectrum if return_complex or not real else stacked(spectrum)


def lower_istft(
    input: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Any = None,
    center: bool = True, normalized: bool = False, onesided: bool | None = None, length: Any = None,
    return_complex: bool = False,
) -> Any:  # fmt: skip
    """The windows of a series transformed back, added up where they were, and divided by what the windows add up to."""
    if return_complex or isinstance(window, ComplexPair):
        raise Unsupported("an inverse STFT that is complex")
    hop, power = hop_length or n_fft // 4, 0.5 if normalized else 1.0
    form: Form = "full" if onesided is False else "mirrored"
    frames = along(
        aten.transpose.int(input, -2, -1), -1, n_fft, form, inverse=True, power=power, outputs=("re",)
    ).re
    whole = frame_window(frames, window, win_length or n_fft, n_fft)
    size = n_fft + hop * (frames.shape[1] - 1)
    series = aten.unfold_backward.default(aten.mul.Tensor(frames, whole), [frames.shape[0], size], 1, n_fft, hop)
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else -start if center else None
    envelope = window_envelope(frames, whole, hop)
    kept = [aten.slice.Tensor(value, -1, start, end) for value in (series, envelope)]
    result = aten.div.Tensor(*kept)
    if length is None:
        return result
    # A series that is longer than its windows ends in zeros; the cut takes away what is padded in vain.
    return aten.slice.Tensor(aten.constant_pad_nd.default(result, [0, length], 0.0), -1, 0, length)


def bind_overlap(a: Arguments, operand: str) -> Any:
    return OverlapAdd(a["input_sizes"], a["dim"], a["size"], a["step"]), None, None


OPERATIONS = [
    Operation(aten.unfold_backward.default, Kind.LINEAR, operands=("grad_in",), bind=bind_overlap, sign=Sign.KEEPS,
              channels=lost),
]

FORMS: tuple[tuple[str, Form, bool], ...] = (
    ("fft", "full", False), ("ifft", "full", True), ("rfft", "half", False), ("irfft", "mirrored", True),
    ("ihfft", "half", True), ("hfft", "mirrored", False),
)  # fmt: skip
"""The names of the transforms, their forms, and which turn the other way."""

COMPOSED = [
    *(
        Composed(lower, (getattr(torch.fft, name),), (), {getattr(aten, f"fft_{name}").default: None})
        for name, lower in {
            **{name: transform(form, inverse=inverse) for name, form, inverse in FORMS},
            **{f"{name}{kind}": transforms(form, dims, inverse=inverse) for name, form, inverse in FORMS
               for kind, dims in (("2", (-2, -1)), ("n", None))},
            "fftshift": shift(back=False), "ifftshift": shift(back=True),
        }.items()
    ),
    Composed(lower_r2c, aten={aten._fft_r2c.default: None}),
    Composed(lower_c2c, aten={aten._fft_c2c.default: None}),
    Composed(lower_c2r, aten={aten._fft_c2r.default: None}),
    Composed(lower_stft, (torch.stft,), ("stft",)),
    Composed(lower_istft, (torch.istft,), ("istft",)),
]  # fmt: skip
