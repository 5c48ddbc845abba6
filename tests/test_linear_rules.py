"""Linear rules against dense matrices in float64, for every linear operation and policy for the bias."""

import copy
from functools import partial

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from torch import nn
from torchvision.ops import ps_roi_align, roi_align

import fxlrp
from fxlrp.rules import Absolute, AlphaBeta, Epsilon, Flat, Gamma, Norm, WPlus, WSquare, ZBox, ZPlus

# Every linear operation as a module, and an input for it ------------------------------------

CASES = {
    "linear": (nn.Linear(5, 4), (2, 5)),
    "linear over tokens": (nn.Linear(5, 4), (2, 3, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "conv2d strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 6, 5)),
    "conv2d with rows that no window reaches": (nn.Conv2d(2, 3, 2, stride=3), (2, 2, 7, 8)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 4, 4)),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 4, 4)),
    "conv2d dilated": (nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 2, 6, 6)),
    "conv2d uneven": (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0)), (2, 2, 5, 6)),
    "conv2d same": (nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5)),
    "conv2d same, even kernel": (nn.Conv2d(2, 3, 4, padding="same", dilation=1), (2, 2, 5, 5)),
    "conv2d valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 2, 3, 4, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 2, 3, stride=2), (2, 3, 5)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 3, 3)),
    "conv_transpose2d dilated": (nn.ConvTranspose2d(2, 3, 2, dilation=2, output_padding=1), (2, 2, 3, 3)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 2, 2, 2)),
    "avg_pool1d": (nn.AvgPool1d(3, stride=2, padding=1), (2, 3, 7)),
    "avg_pool2d": (nn.AvgPool2d(2), (2, 3, 4, 6)),
    "avg_pool2d overlapping": (nn.AvgPool2d(3, stride=2, padding=1), (2, 3, 6, 5)),
    "avg_pool2d ceil": (nn.AvgPool2d(3, stride=2, ceil_mode=True, count_include_pad=False), (2, 3, 6, 6)),
    "avg_pool2d divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 3, 4, 4)),
    "avg_pool3d": (nn.AvgPool3d(2), (2, 2, 4, 4, 2)),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(3), (2, 3, 7)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((2, 3)), (2, 3, 5, 7)),
    "adaptive_avg_pool2d to one": (nn.AdaptiveAvgPool2d(1), (2, 3, 5, 7)),
    "adaptive_avg_pool2d keeping an axis": (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5, 7)),
    "adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(2), (2, 2, 4, 3, 5)),
    "upsample nearest": (nn.Upsample(scale_factor=2), (2, 2, 3, 3)),
    "upsample bilinear": (nn.Upsample(size=(5, 7), mode="bilinear"), (2, 2, 3, 3)),
    "upsample bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), (2, 2, 3, 4)),
    "upsample bicubic, smaller": (nn.Upsample(size=(3, 4), mode="bicubic"), (2, 2, 5, 5)),
    "upsample linear": (nn.Upsample(size=7, mode="linear"), (2, 2, 3)),
    "upsample trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (2, 2, 2, 3, 2)),
    "upsample bilinear, corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 2, 3, 3)),
    "smaller without aliases": (partial(F.interpolate, size=(3, 4), mode="bilinear", antialias=True), (2, 2, 5, 6)),
    "bicubic without aliases": (partial(F.interpolate, size=(3, 7), mode="bicubic", antialias=True), (2, 2, 5, 6)),
    "mean": (lambda x: x.mean((2, 3)), (2, 3, 4, 5)),
    "mean keeping axes": (lambda x: x.mean([-2, -1], keepdim=True), (2, 3, 4, 5)),
    "sum": (lambda x: torch.sum(x, dim=1), (2, 3, 4)),
    "matmul": (lambda x: x @ CONSTANT, (2, 3, 5)),
    "matmul from the left": (lambda x: CONSTANT.T @ x, (2, 5, 3)),
    "matmul, a matrix a head": (lambda x: x @ CONSTANT.reshape(2, 5, 2), (2, 2, 3, 5)),
    "matmul, one row for many matrices": (lambda x: x @ CONSTANT.reshape(2, 5, 2), (2, 1, 3, 5)),
    "matmul from the left, one row for many": (lambda x: CONSTANT.reshape(2, 2, 5) @ x, (2, 1, 5, 3)),
    "matmul by a vector": (lambda x: torch.matmul(x, CONSTANT[:, 0]), (2, 3, 5)),
    "a vector by matmul": (lambda x: torch.matmul(CONSTANT[:, 0], x), (2, 5, 3)),
    "einsum": (lambda x: torch.einsum("btc,cd->bdt", x, CONSTANT), (2, 3, 5)),
    "einsum, the constant first": (lambda x: torch.einsum("cd, b t c -> btd", CONSTANT, x), (2, 3, 5)),
    "einsum, a letter summed out": (lambda x: torch.einsum("btc,cd->bd", x, CONSTANT), (2, 3, 5)),
    "einsum of one": (lambda x: torch.einsum("btc->bc", x), (2, 3, 5)),
    "solve": (lambda x: torch.linalg.solve(SQUARE, x), (2, 4, 3)),
    "solve from the right": (lambda x: torch.linalg.solve(SQUARE, x, left=False), (2, 3, 4)),
    "solve, a column for each matrix": (lambda x: torch.linalg.solve(SQUARE.expand(len(x), 4, 4), x), (2, 4)),
    "cholesky_solve": (lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(SQUARE @ SQUARE.T)), (2, 4, 3)),
    "roi_align": (lambda x: roi_align(x, boxes(x), (2, 3), 0.5, 2, aligned=True).reshape(len(x), -1), (2, 2, 5, 6)),
    "ps_roi_align": (lambda x: ps_roi_align(x, boxes(x), (2, 1), 0.5).reshape(len(x), -1), (2, 4, 5, 4)),
    "cumulative sum": (lambda x: x.cumsum(1), (2, 4, 3)),
    "cumulative sum from the end": (lambda x: torch.cumsum(x, dim=-1), (2, 4, 3)),
    "fold": (lambda x: F.fold(x, (4, 5), (2, 3), padding=(0, 1), stride=(2, 1)), (2, 12, 10)),
    "fold module": (nn.Fold((5, 5), 2, dilation=2), (2, 8, 9)),
    "unfold and back": (lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1), (2, 2, 4, 4)),
}
CONSTANT = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
SQUARE = CONSTANT[:4] + 3 * torch.eye(4, dtype=torch.float64)
BOXES = torch.tensor([[1.0, 0.5, 9.0, 7.0], [-3.0, 2.0, 4.0, 12.5]], dtype=torch.float64)


def boxes(x):
    """Two for each item, after its number."""
    items = torch.arange(len(x), dtype=x.dtype).repeat_interleave(len(BOXES))
    return torch.cat([items[:, None], BOXES.repeat(len(x), 1)], 1)


class Wrapped(nn.Module):
    """A function, or a module, as a model of its own."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        if not isinstance(operation, nn.Module):
            self.register_buffer("constant", CONSTANT)

    def forward(self, x):
        return self.operation(x)


def make(case, seed=0):
    operation, shape = CASES[case]
    torch.manual_seed(seed)
    model = Wrapped(operation).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, torch.randn(shape, dtype=torch.float64)


def dense(model, x):
    """The matrix W (outputs, inputs) and bias of the affine map at the shape of ``x``."""
    with torch.no_grad():
        zero = torch.zeros_like(x[:1])
        bias = model(zero).flatten()
        basis = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
        return (model(basis).flatten(1) - bias).T, bias


def explain(model, rule, relevance, **options):
    preset = fxlrp.Preset("one rule", linear=rule)
    return fxlrp.compile(model, preset, start=lambda output, target: relevance, **options)


BOX = ZBox(-5.0, 5.0)
RULES = {
    f"{name}{'' if bias == 'ignore' else f', bias {bias}'}": make(bias)
    for name, make in {
        "z-plus": lambda bias: ZPlus(bias=bias),
        "z-plus absorbing": lambda bias: ZPlus(vanishing="absorb", bias=bias),
        "z-plus stabilized": lambda bias: ZPlus(stabilizer=1e-2, bias=bias),
        "w-plus": lambda bias: WPlus(bias=bias),
        "epsilon": lambda bias: Epsilon(1e-2, bias=bias),
        "lrp-0": lambda bias: Epsilon(0, bias=bias),
        "gamma": lambda bias: Gamma(0.3, bias=bias),
        "gamma, rescaled": lambda bias: Gamma(0.3, stabilizer=0, bias=bias, vanishing="rescale"),
        "gamma, original": lambda bias: Gamma(0.3, generalized=False, stabilizer=1e-2, bias=bias),
        "absolute": lambda bias: Absolute(bias=bias),
        "absolute stabilized": lambda bias: Absolute(stabilizer=1e-2, bias=bias),
        "alpha2 beta1": lambda bias: AlphaBeta(2, 1, stabilizer=1e-2, bias=bias),
        "alpha2 beta1 rescaling": lambda bias: AlphaBeta(2, 1, stabilizer=0, bias=bias),
        "w-square": lambda bias: WSquare(bias=bias),
        "w-square stabilized": lambda bias: WSquare(stabilizer=1e-2, bias=bias),
        "flat": lambda bias: Flat(bias=bias),
        "flat stabilized": lambda bias: Flat(stabilizer=1e-2, bias=bias),
    }.items()
    for bias in ("ignore", "absorb", "share")
} | {"box": BOX, "box stabilized": ZBox(-5.0, 5.0, stabilizer=1e-2), "norm": Norm(1e-2)}


def looks_of(model, case, x):
    """How often each output looks at each input: the matrix with every weight at one."""
    ones = copy.deepcopy(model)
    for parameter in ones.parameters():
        nn.init.ones_(parameter)
    W, _ = dense(ones, x)
    # Fixed weights, which are no parameters, look once wherever they are not zero; so does a constant.
    return W if any(True for _ in model.parameters()) or case == "unfold and back" else (W != 0).to(W)


def check_rule(rule, model, x, case=""):
    W, b = dense(model, x)
    looks = looks_of(model, case, x)
    with torch.no_grad():
        relevance = torch.randn_like(model(x))
    got = explain(model, rule, relevance)(x).relevance
    expected = oracle.redistribute(rule, W, b, x.flatten(1), relevance.flatten(1), looks)
    assert_close(got.flatten(1), expected, 1e-10)


def has_bias(case):
    return getattr(CASES[case][0], "bias", None) is not None


def pairs():
    """Every rule with every case; by default a third of them, in which each rule and each case has its turns."""
    for i, rule in enumerate(RULES):
        for j, case in enumerate(CASES):
            if RULES[rule].bias == "ignore" or has_bias(case):
                yield pytest.param(rule, case, marks=[] if (i + j) % 3 == 0 else [pytest.mark.slow])


@pytest.mark.parametrize(("rule", "case"), pairs())
def test_a_rule_is_its_dense_formula(rule, case):
    check_rule(RULES[rule], *make(case), case)


@pytest.mark.parametrize("case", CASES)
def test_an_operand_that_is_never_negative_gives_the_same_relevance(case):
    model, x = make(case)

    class AfterReLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(F.relu(x))

    with torch.no_grad():
        relevance = torch.randn_like(model(x))
    known = explain(AfterReLU().eval(), ZPlus(), relevance)
    assert_close(known(x).relevance, explain(model, ZPlus(), relevance)(x.relu()).relevance)
    assert "negative" not in known.code


@examples(fast=40, slow=1000)
@given(
    dims=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 2),
    dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]), transposed=st.booleans(),
    rule=st.sampled_from(sorted(RULES)),
)  # fmt: skip
def test_a_rule_is_its_dense_formula_at_any_geometry(dims, kernel, stride, padding, dilation, groups, transposed, rule):
    if transposed:
        padding = min(padding, dilation * (kernel - 1))
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    torch.manual_seed(0)
    model = kind(2, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups).double().eval()
    x = torch.randn(2, 2, *[5 + d for d in range(dims)], dtype=torch.float64)
    check_rule(RULES[rule], model, x)


@pytest.mark.parametrize("rule", [ZPlus, partial(Gamma, stabilizer=0)], ids=["z-plus", "gamma"])
def test_spread_gives_vanished_relevance_to_its_own_window(rule):
    model = nn.Conv1d(1, 1, 2, stride=2, bias=False).double().eval()
    model.weight.data[:] = 1
    x = torch.tensor([[[0.0, 0.0, 1.0, 3.0]]], dtype=torch.float64)
    relevance = torch.tensor([[[2.0, 4.0]]], dtype=torch.float64)
    shares = {
        way: explain(model, rule(vanishing=way), relevance)(x).relevance.flatten().tolist()
        for way in ("spread", "rescale", "absorb")
    }
    assert shares["spread"] == pytest.approx([1, 1, 1, 3])
    assert shares["rescale"] == pytest.approx([0, 0, 1.5, 4.5])
    assert shares["absorb"] == pytest.approx([0, 0, 1, 3])


def test_vanished_relevance_is_spread_over_the_signal():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, bias=False)

        def forward(self, x):
            return self.conv(F.pad(x, (1, 1)))

    model = Padded().double().eval()
    explainer = explain(model, ZPlus(), torch.ones(1, 1, 4, dtype=torch.float64))
    x = torch.zeros(1, 1, 4, dtype=torch.float64)
    assert explainer(x).relevance.flatten().tolist() == pytest.approx([1, 1, 1, 1])
    assert explainer.ledger(x).absorbed["padding"].item() == 0
    assert max(row.rescaled.item() for row in explainer.ledger(x)) == 4


@pytest.mark.parametrize("value", [0.0, 2.0, float("-inf")])
@pytest.mark.parametrize("rule", [ZPlus(), WPlus(), ZPlus(vanishing="spread")])
def test_padding_takes_no_share(rule, value):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, stride=2)

        def forward(self, x):
            x = F.pad(x, (0, 1, 1, 0), value=value)
            return self.conv(F.relu(x) if value < 0 else x)

    model = Padded().double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        relevance = torch.rand_like(model(x))
    explainer = explain(model, rule, relevance)
    ledger = explainer.ledger(x)
    assert ledger.absorbed["padding"].tolist() == [0, 0]
    assert_close(ledger.relevance, ledger.start)


def test_epsilon_keeps_what_the_ledger_says():
    model, x = make("conv2d")
    W, b = dense(model, x)
    with torch.no_grad():
        relevance = torch.rand_like(model(x))
    for bias in ("ignore", "absorb"):
        rule = Epsilon(0.1, bias=bias)
        ledger = explain(model, rule, relevance).ledger(x)
        r = relevance.flatten(1)
        z = x.flatten(1) @ W.T + (b if bias == "absorb" else 0)
        denominator = z + 0.1 * torch.where(z < 0, -1.0, 1.0).to(z)
        assert_close(ledger.absorbed["stabilizer"], (r * (denominator - z) / denominator).sum(1))
        expected = (r * b / denominator).sum(1) if bias == "absorb" else torch.zeros(2, dtype=torch.float64)
        assert (ledger.absorbed["bias"] - expected).abs().max() < 1e-12
        assert ledger.error.abs().max() < 1e-12


@pytest.mark.parametrize("bad", [{"vanishing": "drop"}, {"bias": "keep"}, {"stabilizer": -1.0}])
def test_an_invalid_option_of_a_rule_is_rejected(bad):
    with pytest.raises(fxlrp.errors.RuleError, match=next(iter(bad))):
        ZPlus(**bad)


@pytest.mark.parametrize("stabilizer", [0.0, 0.3])
def test_gamma_of_contributions_of_one_sign_is_its_formula(stabilizer):
    """Over values that are nowhere negative an average hands on (1 + γ) x / n of R / ((1 + γ) z + ε)."""
    model, x = nn.Sequential(nn.ReLU(), nn.AvgPool1d(2)).eval(), torch.tensor([[[1.0, 3.0, 2.0, 0.5]]]).double()
    preset = fxlrp.Preset("gamma", linear=Gamma(0.5, stabilizer=stabilizer))
    relevance = fxlrp.compile(model, preset, start=lambda output, target: torch.ones_like(output))(x).relevance
    z = x.unfold(-1, 2, 2).mean(-1).repeat_interleave(2, dim=-1)
    assert_close(relevance, 1.5 * x / 2 / (1.5 * z + stabilizer))


@pytest.mark.parametrize("vanishing", ["absorb", "rescale"])
@pytest.mark.parametrize("stabilizer", [0.0, 0.3])
def test_gamma_shares_nothing_of_an_output_that_is_exactly_zero(stabilizer, vanishing):
    layer = nn.Linear(2, 2, bias=False).double().eval()
    layer.weight.data[:] = torch.tensor([[1.0, -1.0], [2.0, 1.0]])
    preset = fxlrp.Preset("gamma", linear=Gamma(1.0, stabilizer=stabilizer, vanishing=vanishing))
    explainer = fxlrp.compile(layer, preset, start=lambda output, target: torch.tensor([[3.0, 6.0]]).double())
    x = torch.ones(1, 2).double()
    expected = torch.tensor([[4.0, 2.0]]).double() * 6 / (6 + stabilizer)
    if vanishing == "rescale" and not stabilizer:
        expected = expected * 1.5  # the three of the first output follow the six of the second
    assert_close(explainer(x).relevance, expected)
    ledger = explainer.ledger(x)
    assert ledger.error.abs().max() < 1e-12
    assert_close(sum(ledger.absorbed.values()), 9 - expected.sum(1))
