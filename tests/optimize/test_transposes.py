"""``transposes_as_convolutions``: the way back through a convolution is a convolution, wherever that is faster."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from optimize_checks import DOUBLE, assert_changes_nothing, assert_leaves_tokens_alone, assert_same, calls, written
from optimize_nets import signed
from stacks import STACKS, stack

import fxlrp
from fxlrp.passes.optimize import transposes
from fxlrp.steps import convolution as convolutions
from fxlrp.steps.primitives import primitive


@pytest.mark.parametrize("preset", ["conserving", pytest.param("epsilon_plus_flat", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STACKS)
def test_every_form_of_convolution_is_explained_the_same(name, preset):
    model, x = stack(replace(STACKS[name], zeros=True))
    assert len(model.layers)
    assert_changes_nothing(model, x, optimize=("transposes_as_convolutions",), preset=preset)


def test_a_convolution_with_stride_one_has_no_transpose_left():
    model, x = signed()
    plain = fxlrp.compile(model, "conserving", optimize=False)
    turned = fxlrp.compile(model, "conserving", optimize=("transposes_as_convolutions",))
    assert len(written(plain, convolutions.convolution_transpose)) == 5
    assert not written(turned, convolutions.convolution_transpose)
    seen = calls(turned, x)
    assert not seen.of("convolution_backward", "conv_transpose2d")
    assert_same(turned(x), plain(x))


KEPT = {"neither square", "a square kernel at two strides", "depthwise at a stride", "strided volumes"}
TURNED = {
    "kernels of one place at a stride", "a patch embedding", "patches with a rest", "a stride beyond the kernel",
    "a stem", "strided padding of whole windows", "depthwise", "groups", "rows of one place", "volumes",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(KEPT | TURNED))
def test_transposes_of_chosen_forms_become_convolutions(name):
    model, _ = stack(STACKS[name])
    explainer = fxlrp.compile(model, "conserving", optimize=("transposes_as_convolutions",))
    assert bool(written(explainer, convolutions.convolution_transpose)) == (name in KEPT)


def test_a_network_without_convolutions_is_left_alone():
    assert_leaves_tokens_alone("transposes_as_convolutions")


def transposed(s, weight, x, stride, padding, dilation=1, groups=1):
    """torch's own transpose, in the shape of ``x``."""
    dims = weight.dim() - 2
    stride, padding, dilation = (([v] * dims if isinstance(v, int) else list(v)) for v in (stride, padding, dilation))
    made = [
        (n - 1) * st - 2 * p + d * (k - 1) + 1
        for n, st, p, d, k in zip(s.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    rest = [n - m for n, m in zip(x.shape[2:], made, strict=True)]
    return convolutions._TRANSPOSED_CONVOLUTION[dims](s, weight, None, stride, padding, rest, groups, dilation)


def normal(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


FLIPPED = [
    ((3, 3), (1, 1), (1, 1), 1), ((1, 5), (0, 2), (1, 1), 1), ((4, 2), (0, 1), (1, 1), 2), ((7, 1), (6, 0), (1, 1), 3),
    ((3, 2), (4, 1), (2, 3), 1), ((2, 4), (0, 3), (3, 1), 6), ((5,), (4,), (1,), 1), ((3,), (1,), (2,), 2),
    ((1, 2, 3), (0, 1, 2), (1, 1, 1), 1), ((2, 2, 2), (0, 1, 2), (2, 1, 2), 3),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "padding", "dilation", "groups"), FLIPPED)
def test_a_transpose_is_a_convolution_with_flipped_weights(kernel, padding, dilation, groups):
    x, weight = normal(2, 6, *(9, 10, 8)[: len(kernel)]), normal(12, 6 // groups, *kernel)
    convolution = transposes._CONVOLUTION[len(kernel)]
    s = normal(*convolution(x, weight, None, 1, padding, dilation, groups).shape)
    turned = transposes.flipped(weight, groups)
    assert turned.shape == (6, 12 // groups, *kernel)
    around = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    got = convolution(s, turned, None, 1, around, dilation, groups)
    assert_close(got, transposed(s, weight, x, 1, padding, dilation, groups), 1e-13)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7])
def test_a_strided_transpose_interleaves_its_phases(kernel, stride):
    weight, taps = normal(5, 3, kernel, kernel), -(-kernel // stride)
    assert transposes.phases(weight, stride).shape == (3 * stride**2, 5, taps, taps)
    for padding in range(kernel + 2):
        for height, width in ((7, 7), (8, 9), (10, 11), (13, 12)):
            x = normal(2, 3, height, width)
            if min(height, width) + 2 * padding < kernel:
                continue
            s = normal(*F.conv2d(x, weight, None, stride, padding).shape)
            parts = F.conv2d(s, transposes.phases(weight, stride), None, 1, taps - 1)
            got = transposes.interleaved(parts, x, stride, padding)
            assert got.shape == x.shape
            expected = transposed(s, weight, x, stride, padding)
            assert (got - expected).abs().max() <= 1e-13 * weight.abs().sum()


@pytest.mark.parametrize("stride", [(2,), (5,), (2, 3), (1, 4), (3, 1), (2, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_of_one_pixel_puts_values_at_multiples_of_its_stride(stride, groups):
    dims = len(stride)
    weight, convolution = normal(6, 4 // groups, *[1] * dims), transposes._CONVOLUTION[dims]
    for size in ((7, 8, 5), (9, 10, 6), (6, 12, 7)):
        x = normal(2, 4, *size[:dims])
        s = normal(*convolution(x, weight, None, stride, 0, 1, groups).shape)
        parts = convolution(s, transposes.flipped(weight, groups), None, 1, 0, 1, groups)
        got = transposes.spaced(parts, x, list(stride))
        assert_close(got, transposed(s, weight, x, stride, 0, 1, groups), 1e-13)


def test_vmap_puts_values_at_the_same_multiples():
    x, parts = normal(2, 3, 7, 8), normal(4, 2, 3, 4, 3)
    many = torch.vmap(lambda p: transposes.spaced(p, x, [2, 3]))(parts)
    for row, part in zip(many, parts, strict=True):
        assert torch.equal(row, transposes.spaced(part, x, [2, 3]))


def test_spaced_values_have_the_memory_layout_of_the_operand():
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert transposes.spaced(torch.randn(2, 3, 4, 4), x, [2, 2]).is_contiguous(memory_format=torch.channels_last)
    whole = transposes.spaced(torch.randn(2, 3, 4, 4), x.double(), [2, 2])  # relevance may be of another precision
    assert whole.dtype == torch.float32


def test_transposes_can_be_differentiated():
    weight, s, x = normal(4, 3, 3, 3).requires_grad_(), normal(2, 4, 4, 4).requires_grad_(), normal(2, 3, 8, 8)

    def by_phases(s, weight):
        return transposes.interleaved(F.conv2d(s, transposes.phases(weight, 2), None, 1, 1), x, 2, 1)

    def by_turning(s, weight):
        return F.conv2d(s, transposes.flipped(weight, 1), None, 1, 1)

    def by_spacing(s, weight):
        return transposes.spaced(F.conv2d(s, transposes.flipped(weight[:, :, :1, :1], 1)), x, [2, 2])

    for function in (by_phases, by_turning, by_spacing):
        assert torch.autograd.gradcheck(function, (s, weight), fast_mode=True)


def test_wrong_phases_are_noticed(monkeypatch):
    test_every_form_of_convolution_is_explained_the_same("a stem", "conserving")
    right = transposes.phases
    monkeypatch.setattr(transposes, "phases", primitive(lambda weight, stride: right(weight.flip(2), stride)))
    with pytest.raises(AssertionError):
        test_every_form_of_convolution_is_explained_the_same("a stem", "conserving")
