"""Linear rules against dense matrices in float64, for every linear operation."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxlrp
from fxlrp.rules import Epsilon, WPlus, ZPlus

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
    "upsample bilinear, corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 2, 3, 3)),
    "mean": (lambda x: x.mean((2, 3)), (2, 3, 4, 5)),
    "mean keeping axes": (lambda x: x.mean([-2, -1], keepdim=True), (2, 3, 4, 5)),
    "sum": (lambda x: torch.sum(x, dim=1), (2, 3, 4)),
    "matmul": (lambda x: x @ CONSTANT, (2, 3, 5)),
    "matmul from the left": (lambda x: CONSTANT.T @ x, (2, 5, 3)),
    "matmul, a matrix a head": (lambda x: x @ CONSTANT.reshape(2, 5, 2), (2, 2, 3, 5)),
    "matmul, one row for many matrices": (lambda x: x @ CONSTANT.reshape(2, 5, 2), (2, 1, 3, 5)),
    "matmul from the left, one row for many": (lambda x: CONSTANT.reshape(2, 2, 5) @ x, (2, 1, 5, 3)),
    "matmul by a vector": (lambda x: torch.matmul(x, CONSTANT[:, 0]), (2, 3, 5)),
    "einsum": (lambda x: torch.einsum("btc,cd->bdt", x, CONSTANT), (2, 3, 5)),
    "einsum, the constant first": (lambda x: torch.einsum("cd, b t c -> btd", CONSTANT, x), (2, 3, 5)),
    "einsum, a letter summed out": (lambda x: torch.einsum("btc,cd->bd", x, CONSTANT), (2, 3, 5)),
    "einsum of one": (lambda x: torch.einsum("btc->bc", x), (2, 3, 5)),
    "cumulative sum": (lambda x: x.cumsum(1), (2, 4, 3)),
    "cumulative sum from the end": (lambda x: torch.cumsum(x, dim=-1), (2, 4, 3)),
    "fold": (lambda x: F.fold(x, (4, 5), (2, 3), padding=(0, 1), stride=(2, 1)), (2, 12, 10)),
    "fold module": (nn.Fold((5, 5), 2, dilation=2), (2, 8, 9)),
    "unfold and back": (lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1), (2, 2, 4, 4)),
}
CONSTANT = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


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


def redistribute(contributions, denominator, relevance):
    """Σ_j c_ij R_j / z_j, with 0 where z_j is 0; contributions (batch, outputs, inputs)."""
    s = torch.where(denominator == 0, 0, relevance / torch.where(denominator == 0, 1, denominator))
    return torch.einsum("bji,bj->bi", contributions, s)


def completed(share, relevance):
    """What is missing, in proportion to the magnitude of what arrived; evenly where nothing did."""
    lost = relevance.sum(1, keepdim=True) - share.sum(1, keepdim=True)
    total = share.abs().sum(1, keepdim=True)
    even = torch.ones_like(share) / share.shape[1]
    weight = torch.where(total == 0, even, share.abs() / torch.where(total == 0, 1, total))
    return share + lost * weight


def signs(z):
    return torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))


def contributions_of(rule, W, x):
    flat = x.flatten(1)[:, None, :]
    if isinstance(rule, WPlus):
        return W.clamp(min=0).expand(len(x), *W.shape)
    if isinstance(rule, ZPlus):
        return (W * flat).clamp(min=0)
    return W * flat


def oracle(rule, W, b, x, relevance):
    c = contributions_of(rule, W, x)
    z = c.sum(2)
    if rule.bias == "absorb":
        z = z + b
    if rule.stabilizer:
        z = z + rule.stabilizer * signs(z)
    share = redistribute(c, z, relevance)
    return completed(share, relevance) if rule.vanishing == "rescale" and not rule.stabilizer else share


RULES = {
    "z-plus": ZPlus(),
    "z-plus absorbing": ZPlus(vanishing="absorb"),
    "z-plus stabilized": ZPlus(stabilizer=1e-2),
    "z-plus stabilized with bias": ZPlus(stabilizer=1e-2, bias="absorb"),
    "w-plus": WPlus(),
    "epsilon": Epsilon(1e-2),
    "epsilon with bias": Epsilon(1e-2, bias="absorb"),
    "lrp-0": Epsilon(0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_dense_formula(rule, case):
    model, x = make(case)
    W, b = dense(model, x)
    with torch.no_grad():
        relevance = torch.randn_like(model(x))
    got = explain(model, RULES[rule], relevance)(x).relevance
    assert_close(got.flatten(1), oracle(RULES[rule], W, b, x, relevance.flatten(1)))


@pytest.mark.parametrize("case", CASES)
def test_a_known_sign_changes_nothing(case):
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
    assert "negative" not in known.code
    assert_close(known(x).relevance, explain(model, ZPlus(), relevance)(x.relu()).relevance)


@settings(max_examples=40)
@given(
    dims=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 2),
    dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]), transposed=st.booleans(),
    rule=st.sampled_from(["z-plus", "epsilon with bias", "w-plus"]),
)  # fmt: skip
def test_a_rule_is_its_dense_formula_at_any_geometry(dims, kernel, stride, padding, dilation, groups, transposed, rule):
    if transposed:
        padding = min(padding, dilation * (kernel - 1))
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    torch.manual_seed(0)
    model = kind(2, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups).double().eval()
    x = torch.randn(2, 2, *[5 + d for d in range(dims)], dtype=torch.float64)
    W, b = dense(model, x)
    with torch.no_grad():
        relevance = torch.randn_like(model(x))
    got = explain(model, RULES[rule], relevance)(x).relevance
    assert_close(got.flatten(1), oracle(RULES[rule], W, b, x, relevance.flatten(1)))


def test_spread_gives_vanished_relevance_to_its_own_window():
    model = nn.Conv1d(1, 1, 2, stride=2, bias=False).double().eval()
    model.weight.data[:] = 1
    x = torch.tensor([[[0.0, 0.0, 1.0, 3.0]]], dtype=torch.float64)
    relevance = torch.tensor([[[2.0, 4.0]]], dtype=torch.float64)
    shares = {
        way: explain(model, ZPlus(vanishing=way), relevance)(x).relevance.flatten().tolist()
        for way in ("spread", "rescale", "absorb")
    }
    assert shares["spread"] == pytest.approx([1, 1, 1, 3])
    assert shares["rescale"] == pytest.approx([0, 0, 1.5, 4.5])
    assert shares["absorb"] == pytest.approx([0, 0, 1, 3])


def test_where_nothing_is_left_relevance_is_spread_over_the_signal():
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
        z = contributions_of(rule, W, x).sum(2) + (b if bias == "absorb" else 0)
        denominator = z + 0.1 * signs(z)
        assert_close(ledger.absorbed["stabilizer"], (r * (denominator - z) / denominator).sum(1))
        expected = (r * b / denominator).sum(1) if bias == "absorb" else torch.zeros(2, dtype=torch.float64)
        assert (ledger.absorbed["bias"] - expected).abs().max() < 1e-12
        assert ledger.error.abs().max() < 1e-12


@pytest.mark.parametrize("bad", [{"vanishing": "drop"}, {"bias": "keep"}, {"stabilizer": -1.0}])
def test_a_rule_refuses_what_it_does_not_know(bad):
    with pytest.raises(fxlrp.errors.RuleError, match=next(iter(bad))):
        ZPlus(**bad)
