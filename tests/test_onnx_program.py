"""The program for runtimes of ONNX gives what the one that the rules wrote gives, also where denominators vanish."""

import operator

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from nets import calibrated
from torch import nn

import fxlrp
from fxlrp.exports import onnx_steps as steps
from fxlrp.exports.onnx_program import for_onnx
from fxlrp.passes.optimize import NAMES
from fxlrp.passes.optimize.transposes import spaced
from fxlrp.passes.request import Request
from fxlrp.rules.linear import ZBox
from fxlrp.steps import addition, primitives
from fxlrp.steps.convolution import convolution_transpose
from fxlrp.steps.pooling import average_pool, average_pool_transpose

DOUBLE = torch.float64
BOTH = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])


def programs(model, x, preset, asked=NAMES):
    """The program as the rules wrote it, and the one for ONNX; functions of an input."""
    engine = fxlrp.compile(model, preset)._engine
    prepared = engine.prepare((x,), {})
    written = engine.program(prepared, Request(optimizations=prepared.plan.known_when_emitted), packed=False).module
    return written, for_onnx(written, asked)


def called(program):
    return [node.target for node in program.graph.nodes]


# Steps -----------------------------------------------------------------------------------------------


def values(dtype, least=0.0):
    """Zeros of both signs, and numbers of all sizes that are at least so large, or 1e-12."""
    tiny = least or 1e-12
    some = torch.tensor([0.0, -0.0, tiny, -tiny, 1e-12, -1e-12, 0.3, -0.3, 4.0, -4.0, 1e9, -1e9], dtype=dtype)
    return some[:, None].expand(-1, len(some)), some[None].expand(len(some), -1)


@BOTH
def test_signs_and_stabilizers_are_those_of_the_rules(dtype):
    z, value = values(dtype, 1e3 * torch.finfo(dtype).tiny)
    assert_close(steps.stabilized(z, 1e-6), primitives.stabilize(z, 1e-6))
    assert_close(steps.times_sign(value, z, 1.025), primitives.with_sign(value, z, 1.025))
    assert_close(steps.divide_stabilized(value, z, 1e-6), primitives.divide(value, z, True, 1e-6))


@BOTH
@pytest.mark.parametrize("gamma", [0.02, 0.1, 3.0])
def test_joins_are_shared_as_the_rules_do(dtype, gamma):
    skip, residual = values(dtype)
    relevance = torch.full_like(skip, 2.0)
    pairs = [
        (steps.ratio_halves(relevance, skip, residual), addition.ratio_split(relevance, skip, residual)),
        (steps.gamma_shares(relevance, skip, residual, gamma), addition.gamma_split(relevance, skip, residual, gamma)),
    ]
    for found, expected in pairs:
        for share, wanted in zip(found, expected, strict=True):
            assert ((share - wanted).abs() <= 100 * torch.finfo(dtype).eps * (1 + wanted.abs())).all()


@BOTH
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_an_output_of_zero_shares_nothing_by_the_gamma_rule(dtype, epsilon):
    z = torch.tensor([0.0, 0.0, -0.5, 2.0], dtype=dtype)
    total = torch.tensor([0.0, 3.0, 1.0, 0.0], dtype=dtype)
    denominator = primitives.favoured_denominator(z, total, 1.5, float("inf") if epsilon else 0.0)
    expected = primitives.divide(torch.ones_like(z), denominator, False, epsilon)
    assert_close(steps.favoured_quotient(torch.ones_like(z), z, total, 1.5, epsilon), expected)
    assert not expected[:2].any()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(1, 0, 1), (3, 1, 1), (5, 2, 1), (3, 0, 2), (2, 1, 1)])
@pytest.mark.parametrize("size", [11, 12])
def test_transposes_are_convolutions_with_zeros_between(groups, stride, kernel, padding, dilation, size):
    x, weight = torch.randn(2, 4, size, size + 1, dtype=DOUBLE), torch.randn(8, 4 // groups, kernel, kernel).double()
    window = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    s = torch.randn_like(F.conv2d(x, weight, None, *window))
    assert_close(steps.turned_transpose(s, weight, x, *window), convolution_transpose(s, weight, x, *window))
    if kernel == 1:
        parts = torch.randn(*s.shape[:1], 4, *s.shape[2:], dtype=DOUBLE)
        assert_close(steps.spaced_fast(parts, x, [stride] * 2), spaced(parts, x, [stride] * 2))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("divisor", [None, 5])
def test_average_pools_go_back_as_convolutions(ceil_mode, count_include_pad, padding, divisor):
    x = torch.randn(2, 3, 10, 11, dtype=DOUBLE)
    pool = [3, 2], [2, 2], [padding, padding], ceil_mode, count_include_pad, divisor
    s = torch.randn_like(average_pool(x, *pool))
    assert_close(steps.average_back(s, x, *pool), average_pool_transpose(s, x, *pool))


# Programs --------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Paddings of their own before convolutions, strided and depthwise ones, a join, and channels that are dead."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.strided, self.deep = nn.Conv2d(8, 8, 3, 2, groups=8), nn.Conv2d(8, 8, 5, groups=8)
        self.widen, self.last, self.fc = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1, 2), nn.Linear(8, 4)
        with torch.no_grad():
            self.strided.weight[:2] = -self.strided.weight[:2].abs()  # no positive weight: z⁺ vanishes
            self.strided.bias[:2] = 1.0
            self.deep.weight[3] = 0.0

    def forward(self, x):
        x = self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))).relu()
        x = F.max_pool2d(F.relu6(self.strided(F.pad(x, (0, 1, 0, 1)))), 3, 1, 1)
        y = self.widen(self.deep(F.pad(x, (2, 2, 2, 2))))
        return self.fc(self.last(y.relu() + torch.cat([x, x], 1)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def x():
    images = torch.randn(3, 3, 32, 32, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    images[1] = 0
    return images


@pytest.fixture(scope="module")
def model(x):
    torch.manual_seed(0)
    return calibrated(Padded().double(), x)


PRESETS = ["evidence", "conserving", "conserving_gamma", "epsilon_plus", "excitation_backprop"]


@pytest.mark.parametrize("asked", [NAMES, ()], ids=["optimised", "plain"])
@pytest.mark.parametrize("preset", PRESETS)
def test_programs_give_the_same(model, x, preset, asked):
    written, program = programs(model, x, preset, asked)
    expected, found = written(x, None), program(x, None)
    assert_close(found["relevance"][0], expected["relevance"][0])
    assert torch.equal(found["output"][0], expected["output"][0])


def test_what_vanishes_is_handed_on_as_before(model, x):
    written, program = programs(model, x, "conserving")
    assert primitives.divide in called(written)
    # Those of the mean and of the classifier stay, a number for each feature.
    assert called(program).count(primitives.divide) <= 2 < called(written).count(primitives.divide)
    start = program(x, None)["start"]
    assert_close(program(x, None)["relevance"][0].sum((1, 2, 3)), start)


def test_padding_is_part_of_the_convolutions(model, x):
    from fxlrp.steps.routing import unpad

    written, program = programs(model, x, "evidence")
    # That of the stem stays, which is strided and mixes channels.
    assert called(written).count(unpad) == 3
    assert called(program).count(unpad) == 1


def test_what_a_layer_makes_of_ones_depends_on_weights_alone(model, x):
    _, program = programs(model, x, "conserving")
    ones = [node for node in program.graph.nodes if node.target is steps.ones_of_one_item]
    assert ones
    assert torch.ones_like not in called(program)


def test_contributions_that_may_be_negative_are_divided_with_the_test():
    """Outside its box, z^B has contributions of both signs, and a sum that vanishes is no sign that they do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()
    images = 3 * torch.randn(2, 1, 6, 6, dtype=DOUBLE)
    box = fxlrp.compile(net, "conserving", rules={"0": ZBox(-1, 1)})._engine
    prepared = box.prepare((images,), {})
    written = box.program(prepared, Request(optimizations=()), packed=False).module
    program = for_onnx(written, ())
    assert called(program).count(primitives.divide) == 1
    assert_close(program(images, None)["relevance"][0], written(images, None)["relevance"][0])
    assert operator.mul in called(program)
