"""Complex values while a graph is made canonical: which values are complex, and calls that meet them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.passes.building import Builder
from fxlrp.passes.lookups import SHAPE_METHODS
from fxlrp.passes.refusals import called
from fxlrp.steps.fourier import imaginary_part, real_part
from fxlrp.vocabulary import VOCABULARY
from fxlrp.vocabulary.complex_values import ComplexPair, complex_call, is_complex

_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "device", "layout"})

_ASKED_OF_A_PART = frozenset({"size", "dim", "ndimension", "numel", "nelement", "__len__"})

_COMPLEX = frozenset({
    "view_as_complex", "complex", "polar", "cfloat", "cdouble", "stft", "fft", "ifft", "rfft", "ihfft", "fft2", "ifft2",
    "rfft2", "ihfft2", "fftn", "ifftn", "rfftn", "ihfftn",
})  # fmt: skip
"""Functions and methods that give complex values of real ones."""

_REAL = frozenset({
    "view_as_real", "real", "imag", "abs", "absolute", "angle", "arg", "norm", "vector_norm", "linalg_vector_norm",
    "irfft", "irfft2", "irfftn", "hfft", "hfft2", "hfftn", "istft", "float", "double", "half", "dtype",
    "itemsize", "is_complex", "isnan", "isinf", "isfinite", "eq", "ne", "sym_size", "item",
}) | _SHAPE_ATTRIBUTES | _ASKED_OF_A_PART  # fmt: skip
"""Those that give real values of complex ones."""


class ComplexBuilder(Builder):
    """Records canonical calls; those that complex values take part in become calls that take their parts."""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        if not any(map(is_complex, leaves((args, kwargs)))):
            return super().create_proxy(kind, target, args, kwargs, *more, **options)
        if _asks_shape(kind, target, args):
            return super().create_proxy(kind, target, _of_a_part(args), kwargs)
        if target is torch.ones_like:
            return target(args[0].some)
        if target is torch.zeros_like:
            return ComplexPair(target(args[0].some), target(args[0].some))
        if getattr(target, "__name__", "") == "getitem" and isinstance(args[1], int):
            re, im = args[0].re, args[0].im
            return ComplexPair(None if re is None else re[args[1]], None if im is None else im[args[1]])
        return complex_call(VOCABULARY.canonical(target), target, args, kwargs)

    def stand_in(self, node: fx.Node, target: Any, args: Any) -> Any:
        """A call in the place of a captured one that is not known."""
        value = super().create_proxy("call_function", target, _whole(args), {})
        return of_constant(value) if gives_complex(node, args, {}) else value

    def constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The call of a captured node that carries no signal, as the model wrote it."""
        pairs = any(isinstance(value, ComplexPair) for value in leaves((args, kwargs)))
        asks = pairs and _asks_shape(node.op, node.target, args)
        makes = gives_complex(node, args, kwargs)
        if pairs:
            args, kwargs = (_of_a_part(v) if asks else _whole(v) for v in (args, kwargs))
        value = super().create_proxy(node.op, node.target, args, kwargs)
        return of_constant(value) if makes else value


def of_constant(whole: fx.Proxy) -> ComplexPair:
    """A complex constant in its two parts."""
    return ComplexPair(real_part(whole), imaginary_part(whole), whole)  # type: ignore[arg-type]


def gives_complex(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether a captured call that carries no signal gives complex values.

    Where a capture by symbolic tracing does not tell, complex is the answer that is right for real values as well.
    """
    if "val" in node.meta:
        return holds_complex(node.meta["val"])
    name = str(node.args[1]) if node.target is getattr else called(node).removeprefix("fft_")
    if name in _REAL:
        return False
    values = leaves((args, kwargs))
    types = [value for value in values if isinstance(value, torch.dtype)]
    return name in _COMPLEX or any(map(is_complex, types or values))


def holds_complex(value: Any) -> bool:
    """Whether what a capture tells of a value is complex."""
    return any(isinstance(entry, torch.Tensor) and entry.is_complex() for entry in leaves(value))


def leaves(value: Any) -> list[Any]:
    """What arguments are made of, lists and slices opened."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found


def _asks_shape(kind: str, target: Any, args: Any) -> bool:
    if target is getattr:
        return args[1] in _SHAPE_ATTRIBUTES
    if kind == "call_method":
        return target in SHAPE_METHODS & _ASKED_OF_A_PART
    return target is len or str(getattr(target, "__name__", "")).split(".")[0] == "sym_size"


def _of_a_part(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda v: v.some if isinstance(v, ComplexPair) else v)


def _whole(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda v: v.value() if isinstance(v, ComplexPair) else v)
