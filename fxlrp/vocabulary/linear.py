"""Linear layers: convolutions, linear layers and matrix products."""

from __future__ import annotations

import functools
import operator
import string
from typing import Any

import torch
import torch.nn.functional as F

from fxlrp.steps import batch_axis
from fxlrp.steps.convolution import Convolution, TransposedConvolution
from fxlrp.steps.deformable import DeformableConvolution
from fxlrp.steps.dense import Dense
from fxlrp.steps.fourier import fourier_matrix
from fxlrp.steps.linear_operation import LinearOperation
from fxlrp.steps.matrix_product import EinsteinSum, GroupedProduct, MatrixProduct
from fxlrp.vocabulary.channel_moves import behind_batch, last, lost
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Unsupported, known_shape, per_axis

aten = torch.ops.aten
Bindings = tuple[LinearOperation, Any, Any]


def _kernel(weight: Any) -> tuple[Any, ...]:
    """The size of a kernel; nothing where it is not known."""
    return (known_shape(weight) or ())[2:]


def convolution(dims: int) -> Operation:
    target = getattr(aten, f"conv{dims}d").default

    def lower(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
              dilation: Any = 1, groups: int = 1) -> Any:
        stride, dilation = per_axis(stride, dims), per_axis(dilation, dims)
        if isinstance(padding, str):
            if padding == "same":
                kernel = _kernel(weight)
                if not kernel or not all(isinstance(k, int) for k in kernel):
                    raise Unsupported("padding='same' with a weight that is computed in the graph")
                total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
                if any(t % 2 for t in total):
                    # The odd row goes behind, as torch does it.
                    pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
                    input = aten.constant_pad_nd.default(input, pads, 0.0)
                    total = [0] * dims
                padding = [t // 2 for t in total]
            else:
                padding = 0
        return target(input, weight, bias, stride, per_axis(padding, dims), dilation, groups)

    def bind(a: Arguments, operand: str) -> Bindings:
        operation = Convolution(
            dims, per_axis(a["stride"], dims), per_axis(a["padding"], dims), per_axis(a["dilation"], dims), a["groups"]
        )
        return operation, a["weight"], a["bias"]

    return Operation(
        target, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(getattr(torch, f"conv{dims}d"),), aten={getattr(aten, f"conv{dims}d").padding: lower},
        values="input", lower=lower, bind=bind, parametric=True, channels=behind_batch,
        input_channels=lambda shape, a: shape[1] * a["groups"],
    )


def transposed_convolution(dims: int) -> Operation:
    packet = getattr(aten, f"conv_transpose{dims}d")
    target = packet.default if dims == 1 else packet.input

    def lower(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
              output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Any:
        axes = [per_axis(v, dims) for v in (stride, padding, output_padding)]
        return target(input, weight, bias, *axes, groups, per_axis(dilation, dims))

    def bind(a: Arguments, operand: str) -> Bindings:
        axes = {n: per_axis(a[n], dims) for n in ("stride", "padding", "output_padding", "dilation")}
        operation = TransposedConvolution(dims, **axes, groups=a["groups"])
        return operation, a["weight"], a["bias"]

    return Operation(
        target, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(getattr(torch, f"conv_transpose{dims}d"),), lower=lower, bind=bind, parametric=True,
        channels=behind_batch, input_channels=lambda shape, a: shape[0],
    )


def lower_convolution(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
                      output_padding: Any, groups: int) -> Any:
    """ATen's one convolution for all numbers of axes, transposed or not."""
    dims = len(stride)
    if not transposed:
        return getattr(aten, f"conv{dims}d").default(input, weight, bias, stride, padding, dilation, groups)
    return CONVOLUTIONS[dims + 2].call(input, weight, bias, stride, padding, output_padding, groups, dilation)


def lower_time_first(input: Any, weight: Any, bias: Any = None, pad: Any = 0) -> Any:
    """``conv_tbc``: over the first axis, the batch in the second and channels in the last."""
    series, kernel = aten.permute.default(input, [1, 2, 0]), aten.permute.default(weight, [2, 1, 0])
    return aten.permute.default(CONVOLUTIONS[0].call(series, kernel, bias, 1, pad), [2, 0, 1])


def bind_linear(a: Arguments, operand: str) -> Bindings:
    return Dense(), a["weight"], a["bias"]


def lower_matmul(input: Any, mat2: Any = None, *, other: Any = None, vec: Any = None) -> Any:
    second = next(value for value in (mat2, other, vec) if value is not None)
    return aten.matmul.default(input, second)


def lower_addmm(input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if (beta, alpha) == (1, 1):
        return aten.linear.default(mat1, aten.t.default(mat2), input)
    return lower_baddbmm(input, mat1, mat2, beta=beta, alpha=alpha)


def lower_sparse_addmm(input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """A product with a sparse matrix, which is written out; torch adds nothing, times zero, to a product alone."""
    if beta == 0:
        product = aten.matmul.default(mat1, mat2)
        return product if alpha == 1 else aten.mul.Tensor(product, alpha)
    return lower_baddbmm(input, mat1, mat2, beta=beta, alpha=alpha)


def lower_baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    product = aten.matmul.default(batch1, batch2)
    product = product if alpha == 1 else aten.mul.Tensor(product, alpha)
    return aten.add.Tensor(product, input if beta == 1 else aten.mul.Tensor(input, beta))


def lower_addbmm(input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    products = aten.sum.dim_IntList(aten.matmul.default(batch1, batch2), [0])
    products = products if alpha == 1 else aten.mul.Tensor(products, alpha)
    return aten.add.Tensor(products, input if beta == 1 else aten.mul.Tensor(input, beta))


def lower_chain(tensors: Any, *more: Any) -> Any:
    """A chain of matrices from the left. torch picks an order by their sizes, among which is that of the batch."""
    first, *others = (tensors, *more) if more else tensors
    return functools.reduce(aten.matmul.default, others, first)


def bind_matmul(a: Arguments, operand: str) -> Bindings:
    left = operand == "other"
    return MatrixProduct(left), a["self" if left else "other"], None


def lower_grouped(input: Any, mat2: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    if offs is None or bias is not None:
        raise Unsupported("a grouped product without ends of its groups, or with a bias")
    return aten._grouped_mm.default(input, mat2, offs)


def bind_grouped(a: Arguments, operand: str) -> Bindings:
    return GroupedProduct(a["offs"]), a["mat2"], None


def has_weights(a: Arguments) -> bool:
    """Whether a matrix product is a layer. The matrix of a Fourier transform is none: no rule for first layers fits."""
    return getattr(a["other"], "target", None) is not fourier_matrix


def lower_einsum(equation: str, *operands: Any) -> Any:
    """Einstein sums of one or two tensors; of more, two at a time from the left; diagonals of repeated axes first."""
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    if not isinstance(equation, str):
        raise Unsupported("einsum with a list of axes")
    compact = equation.replace(" ", "")
    if "." in compact:
        raise Unsupported("einsum with an ellipsis, the number of axes not being known")
    if "->" not in compact:
        letters = sorted(letter for letter in set(compact) - {","} if compact.count(letter) == 1)
        compact = f"{compact}->{''.join(letters)}"
    inputs, result = compact.split("->")
    terms = inputs.split(",")
    for i, term in enumerate(terms):
        while (repeated := next((letter for letter in term if term.count(letter) > 1), None)) is not None:
            first, second = term.index(repeated), term.rindex(repeated)
            tensors[i] = aten.diagonal.default(tensors[i], 0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + repeated
        terms[i] = term
    while len(terms) > 2:
        wanted = set(result).union(*terms[2:])
        kept = "".join(letter for letter in dict.fromkeys(terms[0] + terms[1]) if letter in wanted)
        tensors = [aten.einsum.default(f"{terms[0]},{terms[1]}->{kept}", tensors[:2]), *tensors[2:]]
        terms = [kept, *terms[2:]]
    return aten.einsum.default(f"{','.join(terms)}->{result}", tensors)


def spelled_out(equation: str, ranks: list[int]) -> str:
    """An equation with letters in place of its ellipses, for tensors of these ranks."""
    compact = equation.replace(" ", "")
    inputs, arrow, result = compact.partition("->")
    free = [letter for letter in string.ascii_letters if letter not in compact]
    terms = inputs.split(",")
    hidden = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    letters = "".join(free[: max(hidden)])
    terms = [term.replace("...", letters[len(letters) - n :]) for term, n in zip(terms, hidden, strict=True)]
    if not arrow:
        named = sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1)
        result = letters + "".join(named)
    return f"{','.join(terms)}->{result.replace('...', letters)}"


def einsum_index(operand: str) -> int:
    return int(operand.removeprefix("tensors[").removesuffix("]"))


def bind_einsum(a: Arguments, operand: str) -> Bindings:
    index = einsum_index(operand)
    others = [tensor for i, tensor in enumerate(a["tensors"]) if i != index]
    return EinsteinSum(a["equation"], index), others[0] if others else None, None


def batch_of_einsum(position: Any, a: Arguments) -> Any:
    inputs, result = a["equation"].split("->")
    return batch_axis.einsum_position(position, inputs.split(",")[einsum_index(a["operand"])], result)


def _deformable() -> Any:
    import torchvision  # noqa: F401, whose import makes the operation known

    return torch.ops.torchvision.deform_conv2d.default


def bind_deformable(a: Arguments, operand: str) -> Bindings:
    form = tuple(a[argument.name] for argument in _deformable()._schema.arguments[5:])
    return DeformableConvolution(a["offset"], a["mask"], form), a["weight"], a["bias"]


CONVOLUTIONS = [
    *(convolution(dims) for dims in (1, 2, 3)),
    *(transposed_convolution(dims) for dims in (1, 2, 3)),
]

OPERATIONS: list[Operation] = [
    Operation(
        _deformable(), Kind.LINEAR, operands=("input",), bind=bind_deformable, parametric=True, channels=behind_batch,
        input_channels=lambda shape, a: shape[1] * a["groups"],
    ),
    Operation(
        aten._grouped_mm.default, Kind.LINEAR, operands=("self",), functions=(torch._grouped_mm,),
        lower=lower_grouped, bind=bind_grouped, channels=last, parametric=True,
        aten={aten._grouped_mm.default: lower_grouped, "transformers.grouped_mm_fallback.default": lower_grouped},
    ),
    *CONVOLUTIONS,
    Operation(
        aten.linear.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("input", "weight"),
        functions=(F.linear,), bind=bind_linear, values="input", parametric=True,
        channels=last, input_channels=lambda shape, a: shape[1],
        aten={aten.addmm.default: lower_addmm},
    ),
    Operation(
        aten.matmul.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("self", "other"),
        functions=(torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.sparse.mm),
        methods=("matmul", "bmm", "mm", "__matmul__"),
        lower=lower_matmul, bind=bind_matmul, parametric=has_weights, channels=last,
        aten={
            aten.bmm.default: lower_matmul, aten.mm.default: lower_matmul, aten.mv.default: lower_matmul,
            aten.baddbmm.default: lower_baddbmm,
        },
    ),
    Operation(
        aten.einsum.default, Kind.LINEAR, several=Kind.PRODUCT, operands=("tensors",), functions=(torch.einsum,),
        lower=lower_einsum, bind=bind_einsum, batch=batch_of_einsum, channels=lost, parametric=True,
        aten={aten.einsum.default: lambda equation, tensors, path=None: lower_einsum(equation, tensors)},
    ),
]

COMPOSED = [
    Composed(lower_convolution, (torch.convolution,), aten={aten.convolution.default: None}),
    Composed(lower_time_first, (torch.conv_tbc,), aten={aten.conv_tbc.default: None}),
    Composed(lower_chain, (torch.linalg.multi_dot, torch.chain_matmul), (), {
        aten.linalg_multi_dot.default: None, aten.chain_matmul.default: None,
    }),
    Composed(lower_baddbmm, (torch.baddbmm, torch.addmv), ("addmv",), {aten.addmv.default: None}),
    Composed(lower_addbmm, (torch.addbmm,), ("addbmm",), {aten.addbmm.default: None}),
    Composed(lower_addmm, (torch.addmm,)),
    Composed(lower_sparse_addmm, (torch.sparse.addmm,), (), {aten._sparse_addmm.default: None}),
]
