"""Complex signals as pairs of real ones: what each operation does to the two parts.

Complex values stay outside of the canonical graph. While it is written, one stands there as a :class:`ComplexPair`,
which every lowering may be given in place of a proxy: the canonical calls that it makes come to :func:`complex_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from fxlrp.steps.fourier import complex_of
from fxlrp.vocabulary.arithmetic import is_scalar, lower_add, lower_div, lower_mul, lower_sub
from fxlrp.vocabulary.operation import Composed, Kind, Operation, Unsupported
from fxlrp.vocabulary.pointwise import cast_to

aten = torch.ops.aten

PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}
"""The types of the parts of complex numbers."""


class ComplexPair(fx.Proxy):
    """A complex value: a proxy of its real part and one of its imaginary part; ``None`` is zero.

    Attributes:
        re, im: the parts, of which one at least is a proxy.
        whole: of a constant, a proxy of itself.
    """

    def __init__(self, re: Any, im: Any, whole: fx.Proxy | None = None) -> None:
        some = im if re is None else re
        super().__init__(some.node, some.tracer)
        self.re, self.im, self.whole = re, im, whole

    @property
    def some(self) -> Any:
        """A part, where either will do: for shapes."""
        return self.im if self.re is None else self.re

    @property
    def shape(self) -> Any:
        return (self.some if self.whole is None else self.whole).shape

    def value(self) -> Any:
        """A proxy of the complex tensor, which carries no signal: to be asked, not to be computed with."""
        return complex_of(self.re, self.im) if self.whole is None else self.whole


def is_complex(value: Any) -> bool:
    """Whether a value in a call, or a type, is complex."""
    return isinstance(value, ComplexPair | complex) or (isinstance(value, torch.dtype) and value in PARTS)


def parts(value: Any) -> tuple[Any, Any]:
    """Real and imaginary part of a value that may be real; ``None`` is zero."""
    if isinstance(value, ComplexPair):
        return value.re, value.im
    if isinstance(value, complex):
        return value.real or None, value.imag or None
    return value, None


def paired(re: Any, im: Any) -> ComplexPair:
    """The complex value of two parts that may be of other shapes, or numbers, or ``None``."""
    some = im if is_scalar(re) else re
    re, im = (torch.full_like(some, part) if isinstance(part, int | float) else part for part in (re, im))
    return ComplexPair(re, im)


def like(part: Any, other: Any) -> Any:
    """``part`` in the shape of its sum with ``other``."""
    return part if part is None or is_scalar(other) else lower_add(torch.zeros_like(some(other)), part)


def some(value: Any) -> Any:
    """A real proxy of a value's shape."""
    return value.some if isinstance(value, ComplexPair) else value


def plus(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b if is_scalar(a) and is_scalar(b) else lower_add(a, b)


def minus(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a if b is None else negative(b)
    return a - b if is_scalar(a) and is_scalar(b) else lower_sub(a, b)


def times(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    for one, other in ((a, b), (b, a)):
        if is_scalar(one) and one in (1, -1):
            return other if one == 1 else negative(other)
    return a * b if is_scalar(a) and is_scalar(b) else lower_mul(a, b)


def negative(a: Any) -> Any:
    return None if a is None else -a if is_scalar(a) else aten.neg.default(a)


def total(combine: Callable[[Any, Any], Any], x: Any, y: Any, alpha: Any = 1) -> ComplexPair:
    """A sum or difference; a part that only one of the two has takes the shape of both."""
    y = y if alpha == 1 else product(y, alpha)
    results = []
    for a, b in zip(parts(x), parts(y), strict=True):
        result = combine(a, b)
        if a is None or b is None:
            result = like(result, x if a is None else y)
        results.append(result)
    return paired(*results)


def product(x: Any, y: Any) -> ComplexPair:
    return bilinear(times, x, y)


def bilinear(f: Callable[[Any, Any], Any], x: Any, y: Any) -> ComplexPair:
    """``f``, linear in two values, of complex ones: four real products at most."""
    def of(a: Any, b: Any) -> Any:
        return None if a is None or b is None else f(a, b)

    (a, b), (c, d) = parts(x), parts(y)
    re, im = minus(of(a, c), of(b, d)), plus(of(a, d), of(b, c))
    if re is None and im is None:  # times zero
        return ComplexPair(aten.mul.Tensor(some(y if is_scalar(x) else x), 0.0), None)
    return ComplexPair(re, im)


def quotient(x: Any, y: Any) -> ComplexPair:
    if isinstance(y, complex):
        return product(x, 1 / y)
    if not isinstance(y, ComplexPair):
        return ComplexPair(*(None if part is None else lower_div(part, y) for part in parts(x)))
    squares = [times(part, part) for part in parts(y) if part is not None]
    length = squares[0] if len(squares) == 1 else plus(*squares)
    return quotient(product(x, conjugate(y)), length)


def conjugate(input: Any) -> Any:
    return ComplexPair(input.re, negative(input.im)) if isinstance(input, ComplexPair) else input


def stacked(z: ComplexPair) -> Any:
    """Both parts in one real tensor, along a new last axis."""
    return aten.stack.default([torch.zeros_like(z.some) if part is None else part for part in (z.re, z.im)], -1)


def modulus(z: Any) -> Any:
    """``√(re² + im²)``, the length of a vector, of which each part has its square's share; nothing where it is zero."""
    if z.re is None or z.im is None:
        return aten.abs.default(z.some)
    return aten.linalg_vector_norm.default(stacked(z), 2, [-1], False)


def argument(input: Any) -> Any:
    """The angle: as of other functions of two numbers, half is of the real part and half of the imaginary one."""
    if not isinstance(input, ComplexPair):
        raise Unsupported("the angle of real values")
    re, im = (torch.zeros_like(input.some) if part is None else part for part in (input.re, input.im))
    return aten.atan2.default(im, re)


def polar(abs: Any, angle: Any) -> ComplexPair:
    return ComplexPair(lower_mul(abs, aten.cos.default(angle)), lower_mul(abs, aten.sin.default(angle)))


def exponential(z: ComplexPair) -> ComplexPair:
    if z.im is None:
        return ComplexPair(aten.exp.default(z.re), None)
    wave = ComplexPair(aten.cos.default(z.im), aten.sin.default(z.im))
    return wave if z.re is None else product(aten.exp.default(z.re), wave)


def power(z: ComplexPair, exponent: Any) -> ComplexPair:
    if exponent in (1, 2, 3, 4):
        result = z
        for _ in range(int(exponent) - 1):
            result = product(result, z)
        return result
    if exponent == -1:
        return quotient(1.0, z)
    return polar(aten.pow.Tensor_Scalar(modulus(z), exponent), lower_mul(argument(z), exponent))


def cast(value: Any, dtype: Any) -> ComplexPair:
    if dtype not in PARTS:
        raise Unsupported("a cast of complex values to a real type, or to one that is not written out: take .real")
    return ComplexPair(*(None if part is None else aten.to.dtype(part, PARTS[dtype]) for part in parts(value)))


def with_bias(target: Any, input: Any, weight: Any, bias: Any = None, *more: Any) -> ComplexPair:
    result = bilinear(lambda x, w: target(x, w, None, *more), input, weight)
    if bias is None:
        return result
    channels = [None if part is None else _along_channels(part, target) for part in parts(bias)]
    return total(plus, result, ComplexPair(*channels))


def _along_channels(bias: Any, target: Any) -> Any:
    dims = next((n for n in (1, 2, 3) if f"{n}d" in str(target)), 0)
    return aten.reshape.default(bias, [-1, *[1] * dims]) if dims else bias


def einsum(equation: str, tensors: Any, **more: Any) -> ComplexPair:
    if len(tensors) == 1:
        return ComplexPair(*(None if p is None else aten.einsum.default(equation, [p]) for p in parts(tensors[0])))
    return bilinear(lambda x, y: aten.einsum.default(equation, [x, y]), *tensors)


def length(z: ComplexPair, ord: Any = 2, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    return aten.linalg_vector_norm.default(modulus(z), ord, dim, keepdim)


CALLS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: lambda x, y, alpha=1: total(plus, x, y, alpha),
    aten.sub.Tensor: lambda x, y, alpha=1: total(minus, x, y, alpha),
    aten.mul.Tensor: product,
    aten.div.Tensor: quotient,
    aten.neg.default: lambda z: ComplexPair(negative(z.re), negative(z.im)),
    aten.reciprocal.default: lambda z: quotient(1.0, z),
    aten.square.default: lambda z: product(z, z),
    aten.pow.Tensor_Scalar: power,
    aten.sqrt.default: lambda z: power(z, 0.5),
    aten.exp.default: exponential,
    aten.log.default: lambda z: ComplexPair(aten.log.default(modulus(z)), argument(z)),
    aten.abs.default: modulus,
    aten.to.dtype: cast,
    aten.matmul.default: partial(bilinear, aten.matmul.default),
    aten.einsum.default: einsum,
    aten.linalg_vector_norm.default: length,
    **{target: partial(with_bias, target) for target in (
        aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
        aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    )},
}  # fmt: skip
"""What canonical calls do to complex values, beside those that act on each part."""

EACH = frozenset({
    "sum", "mean", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "scatter_add", "index_add", "_index_put_impl",
    "unfold_backward", "col2im",
})  # fmt: skip
"""Sums, which act on each part; so does what only moves values."""


def complex_call(operation: Operation | None, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A canonical call with complex values among its arguments.

    Raises:
        Unsupported: nothing is known of what it does to them.
    """
    if target in CALLS:
        return CALLS[target](*args, **kwargs)
    if operation is not None and (operation.kind is Kind.ROUTING or operation.name in EACH):
        return each(operation, args, kwargs)
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    raise Unsupported(f"{name} of complex values has no rule: take their real and imaginary parts, or abs()")


def each(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ComplexPair:
    """A move or sum of each part; a real operand beside complex ones has an imaginary part of zeros."""
    names = [argument.name for argument in operation.target._schema.arguments]
    operands = operation.operand_names()
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    moved = [value for name in operands for value in _entries(given[name])]
    results: list[Any] = []
    for part in (0, 1):
        if all(parts(value)[part] is None for value in moved):
            results.append(None)
            continue
        results.append(operation.target(*(
            _part(value, part, operand=name in operands, number=name == "value")
            for name, value in zip(names, args, strict=False)
        ), **{name: _part(value, part, operand=name in operands, number=name == "value")
              for name, value in kwargs.items()}))
    return ComplexPair(*results)


def _entries(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _part(value: Any, part: int, *, operand: bool, number: bool) -> Any:
    if isinstance(value, list | tuple):
        return [_part(entry, part, operand=operand, number=number) for entry in value]
    if number and isinstance(value, int | float | complex):  # what fills up
        return complex(value).imag if part else complex(value).real
    if isinstance(value, ComplexPair) or (operand and isinstance(value, fx.Proxy)):
        found = parts(value)[part]
        return torch.zeros_like(some(value)) if found is None else found
    return value


def lower_view_as_complex(input: Any) -> ComplexPair:
    return ComplexPair(*(aten.select.int(input, -1, part) for part in (0, 1)))


def lower_view_as_real(input: Any) -> Any:
    return stacked(input)


def lower_complex(real: Any, imag: Any) -> ComplexPair:
    return paired(like(real, imag), like(imag, real))


def lower_real(input: Any) -> Any:
    if not isinstance(input, ComplexPair):
        return input
    return torch.zeros_like(input.im) if input.re is None else input.re


def lower_imag(input: Any) -> Any:
    if not isinstance(input, ComplexPair):
        raise Unsupported("the imaginary part of real values")
    return torch.zeros_like(input.re) if input.im is None else input.im


def lower_adjoint(input: Any) -> Any:
    return conjugate(aten.transpose.int(input, -2, -1))


def lower_negated(input: Any) -> Any:
    return aten.neg.default(input)


COMPOSED = [
    Composed(lower_view_as_complex, (torch.view_as_complex,), (), {
        aten.view_as_complex.default: None, aten.view_as_complex_copy.default: None,
    }),
    Composed(lower_view_as_real, (torch.view_as_real,), (), {
        aten.view_as_real.default: None, aten.view_as_real_copy.default: None,
    }),
    Composed(lower_complex, (torch.complex,), (), {aten.complex.default: None}),
    Composed(polar, (torch.polar,), (), {aten.polar.default: None}),
    Composed(argument, (torch.angle,), ("angle",), {aten.angle.default: None}),
    Composed(lower_real, (torch.real,), ("real",), {aten.real.default: None}),
    Composed(lower_imag, (torch.imag,), ("imag",), {aten.imag.default: None}),
    Composed(conjugate, (torch.conj, torch.conj_physical), ("conj", "conj_physical"), {
        aten._conj.default: None, aten.conj.default: None, aten.conj_physical.default: None,
    }),
    Composed(lambda input: input, (torch.resolve_conj, torch.resolve_neg), ("resolve_conj", "resolve_neg"), {
        aten.resolve_conj.default: None, aten.resolve_neg.default: None,
    }),
    Composed(lower_negated, (), (), {aten._neg_view.default: None}),
    Composed(lower_adjoint, (torch.adjoint,), ("H", "mH", "adjoint"), {
        aten.adjoint.default: None, aten.mH.default: None, aten.matrix_H.default: None,
    }),
    Composed(cast_to(torch.complex64), methods=("cfloat",)),
    Composed(cast_to(torch.complex128), methods=("cdouble",)),
]  # fmt: skip
