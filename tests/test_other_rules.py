"""Splits, gates and selections against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from torch import nn

import fxlrp
from fxlrp.rules import (
    Epsilon,
    GammaSplit,
    Halves,
    RatioSplit,
    ResidualOnly,
    SignedSplit,
    SymmetricSplit,
    ToSignal,
    WindowAverage,
    Winner,
    ZPlus,
)

DOUBLE = torch.float64


def shares(rule, relevance, skip, residual, **supports):
    return [None if s is None else s for s in rule(relevance, skip, residual, **supports).operands]


def test_ratio_split_follows_equation_5():
    r, s, m = torch.randn(3, 2, 4, dtype=DOUBLE)
    to_skip, to_residual = shares(RatioSplit(), r, s, m)
    assert_close(to_skip, r * s.abs() / (s.abs() + m.abs()))
    assert_close(to_residual, r * m.abs() / (s.abs() + m.abs()))


def test_ratio_split_of_nothing_is_halves_and_padding_gets_none():
    r, zero = torch.ones(1, 3), torch.zeros(1, 3)
    assert [s.tolist() for s in shares(RatioSplit(), r, zero, zero)] == [[[0.5] * 3]] * 2
    signal = torch.tensor([[1.0, 0.0, 1.0]])
    to_skip, to_residual = shares(RatioSplit(), r, zero, zero, skip_support=signal)
    assert to_skip.tolist() == [[0.5, 0.0, 0.5]]
    assert to_residual.tolist() == [[0.5, 1.0, 0.5]]


class MaskedGates(nn.Module):
    """Gates from differences of scores, those to come masked with −∞, as in an xLSTM."""

    def __init__(self):
        super().__init__()
        self.score, self.head = nn.Linear(4, 1), nn.Linear(4, 3)

    def forward(self, x):
        scores = F.logsigmoid(self.score(x)).cumsum(1)
        scores = torch.where(torch.ones(5, 5).tril().bool(), scores - scores.mT, float("-inf"))
        gates = (scores - scores.max(-1, keepdim=True).values).exp()
        return self.head((x @ x.mT * gates) @ x).mean(1)


@pytest.mark.parametrize(("preset", "split"), [("evidence", None), ("conserving", None), ("conserving", SignedSplit())])
@pytest.mark.parametrize("optimize", [True, False])
def test_a_score_that_is_masked_is_split_as_nothing(preset, split, optimize):
    torch.manual_seed(0)
    model, x = MaskedGates().double().eval(), torch.randn(2, 5, 4, dtype=DOUBLE)
    explainer = fxlrp.compile(model, preset, split=split, optimize=optimize)
    assert_conserves(explainer, x, absorbs=("bias", "constant", "stabilizer"))


def test_symmetric_split_is_halves():
    r, s, m = torch.randn(3, 2, 4)
    assert all(torch.equal(share, r / 2) for share in shares(SymmetricSplit(), r, s, m))


def test_signed_split_is_the_epsilon_rule_of_an_addition():
    r, s, m = torch.randn(3, 2, 4, dtype=DOUBLE)
    total = s + m
    denominator = total + 0.1 * torch.where(total < 0, -1.0, 1.0).double()
    result = SignedSplit(0.1)(r, s, m)
    assert_close(result.operands[0], r * s / denominator)
    assert_close(result.operands[1], r * m / denominator)
    assert_close(result.absorbed["stabilizer"]().sum(1), (r * (1 - total / denominator)).sum(1))


def test_signed_split_of_infinity_is_halves():
    r = torch.rand(1, 3)
    skip, residual = torch.tensor([[float("inf"), 2.0, 3.0]]), torch.tensor([[1.0, float("-inf"), 1.0]])
    result = SignedSplit(0.1)(r, skip, residual)
    assert_close(result.operands[0], r * torch.tensor([[1 / 2.1, 1 / 2.1, 3 / 4.1]]))
    assert_close(result.operands[1], r * torch.tensor([[1 / 2.1, 1 / 2.1, 1 / 4.1]]))
    assert_close(result.absorbed["stabilizer"](), r * torch.tensor([[0.1 / 2.1, 0.1 / 2.1, 0.1 / 4.1]]))


def test_signed_split_of_exactly_zero_hands_nothing_on():
    r = torch.rand(1, 3)
    skip, residual = torch.tensor([[2.0, 0.0, 3.0]]), torch.tensor([[-2.0, 0.0, 1.0]])
    result = SignedSplit(0.1)(r, skip, residual)
    assert_close(result.operands[0], r * torch.tensor([[0, 0, 3 / 4.1]]))
    assert_close(result.operands[1], r * torch.tensor([[0, 0, 1 / 4.1]]))
    assert_close(result.absorbed["stabilizer"](), r * torch.tensor([[1, 1, 0.1 / 4.1]]))


class EachAgainstEach(nn.Module):
    """A soft rank: every value is compared with all, itself included."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.before(x)
        return self.after(torch.sigmoid(h[:, :, None] - h[:, None]).sum((1, 2)))


@pytest.mark.parametrize("preset", ["attnlrp", "epsilon", "cp_lrp"])
def test_differences_of_a_value_and_itself_lose_nothing_in_single_precision(preset):
    torch.manual_seed(0)
    explainer, x = fxlrp.compile(EachAgainstEach().eval(), preset), torch.randn(3, 4, 6)
    size = explainer(x).relevance.abs().sum((1, 2))
    assert (explainer.ledger(x).error.abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_gamma_split_is_the_gamma_rule_of_an_addition(gamma):
    r, s, m = torch.randn(3, 50, 4, dtype=DOUBLE)
    to_skip, to_residual = shares(GammaSplit(gamma), r, s, m)
    for index in range(s.numel()):
        operands = torch.stack([s.flatten()[index], m.flatten()[index]])
        helps = operands.clamp(min=0) if operands.sum() >= 0 else operands.clamp(max=0)
        weighed = operands + gamma * helps
        expected = r.flatten()[index] * weighed / weighed.sum()
        assert_close(torch.stack([to_skip.flatten()[index], to_residual.flatten()[index]]), expected)


def test_gamma_split_is_bounded_where_operands_cancel_and_gives_halves_of_nothing():
    r, s = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1e30]])
    to_skip, to_residual = shares(GammaSplit(0.1), r, s, -s * torch.tensor([1.0, 1.0, 0.9999999]))
    assert_close(to_skip + to_residual, r)
    assert to_skip.abs().max() <= 11.001
    assert to_skip[0, 1] == 0.5


@pytest.mark.parametrize("gamma", [0, -1, float("inf"), float("nan")])
def test_gamma_of_a_split_is_positive(gamma):
    with pytest.raises(fxlrp.errors.RuleError, match="positive, finite gamma"):
        GammaSplit(gamma)


@pytest.mark.parametrize("swapped", [False, True])
def test_signed_split_of_a_difference_negates_what_is_subtracted(swapped):
    class Difference(nn.Module):
        def forward(self, x, y):
            return y - x if swapped else x - y

    x, y = torch.tensor([[5.0, 1.0]], dtype=DOUBLE), torch.tensor([[3.0, 2.0]], dtype=DOUBLE)
    explainer = fxlrp.compile(Difference().eval(), "conserving", split=SignedSplit(1e-12), start="output")
    to_x, to_y = explainer(x, y).relevance
    sign = -1 if swapped else 1
    assert_close(to_x, sign * x)
    assert_close(to_y, -sign * y)


def test_a_statistic_shares_by_each_elements_part_in_it():
    x = torch.tensor([[3.0, -2.0, -0.999]], dtype=DOUBLE)

    def relevance(function, preset):
        class Net(nn.Module):
            def forward(self, x):
                return function(x)

        return fxlrp.compile(Net().eval(), preset, start="output")(x).relevance

    for preset in ("conserving", "cp_lrp", "attnlrp"):
        norm = relevance(lambda x: x.norm(dim=1, keepdim=True), preset)
        assert_close(norm, x**2 / x.norm(), limit=1e-5)
        # In a norm that is spelled out the statistic is held constant, and relevance goes to what is divided.
        for unit in (lambda x: F.normalize(x, dim=1), lambda x: x * torch.rsqrt(x.square().sum(1, keepdim=True))):
            assert_close(relevance(unit, preset), x / x.norm(), limit=1e-5)


def test_residual_only_leaves_the_skip_nothing():
    r = torch.ones(1, 2)
    to_skip, to_residual = shares(ResidualOnly(), r, r, r)
    assert to_skip is None
    assert torch.equal(to_residual, r)


class Add(nn.Module):
    """Operands of unequal shapes, to be told apart by the gradient of a sum."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.operation(self.conv(x), x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "operation", [torch.add, torch.sub, lambda a, b: b + a, lambda a, b: torch.add(a, b, alpha=-2)]
)
@pytest.mark.parametrize("split", ["ratio", "symmetric"])
def test_a_join_that_broadcasts_conserves(operation, split):
    model = Add(operation).double().eval()
    relevance = torch.rand(2, 3, 4, 4, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", split=split, start=lambda output, target: relevance)
    assert_conserves(explainer, torch.randn(2, 3, 4, 4, dtype=DOUBLE))


def test_the_ratio_of_a_scaled_operand_counts_the_scale():
    class Scaled(nn.Module):
        def forward(self, x):
            return torch.sub(x[:, :1], x[:, 1:], alpha=3)

    relevance = torch.ones(1, 1, dtype=DOUBLE)
    explainer = fxlrp.compile(Scaled().eval(), "conserving", start=lambda output, target: relevance)
    got = explainer(torch.tensor([[2.0, 2.0]], dtype=DOUBLE)).relevance
    assert got.tolist() == [[pytest.approx(0.25), pytest.approx(0.75)]]


# Gates ---------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self, gate, flipped=False):
        super().__init__()
        self.conv, self.squeeze, self.gate, self.flipped = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), gate, flipped

    def forward(self, x):
        x = F.relu6(self.conv(x))
        g = self.gate(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return g * x if self.flipped else x * g


GATES = {
    "sigmoid": torch.sigmoid,
    "hard sigmoid": F.hardsigmoid,
    "hard sigmoid spelled out": lambda x: F.relu6(x + 3.0) / 6.0,
    "tanh, shifted": lambda x: 1 + torch.tanh(x),
    "one minus": lambda x: 1 - x.sigmoid(),
    "sigmoid, moved": lambda x: torch.sigmoid(x.flatten(1)).view(-1, 3, 1, 1),
}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("gate", [n for n in GATES if n != "hard sigmoid spelled out"])
def test_the_signal_takes_all_and_the_gate_nothing(gate, flipped):
    model = Gated(GATES[gate], flipped).double().eval()
    relevance = torch.rand(2, 3, 4, 4, dtype=DOUBLE)
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: relevance)
    ledger = assert_conserves(explainer, torch.randn(2, 3, 4, 4, dtype=DOUBLE))
    assert "squeeze" not in [row.node for row in ledger]
    assert ledger.rows[0].kind == "gate"


def test_of_two_clipped_factors_neither_is_the_gate():
    model = Gated(GATES["hard sigmoid spelled out"]).double().eval()
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: torch.ones(1, 3, 4, 4, dtype=DOUBLE))
    ledger = assert_conserves(explainer, torch.randn(1, 3, 4, 4, dtype=DOUBLE))
    assert "squeeze" in [row.node for row in ledger]


def test_an_activation_spelled_out_is_a_gate_of_its_own_input():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    relevance = torch.rand(2, 3, dtype=DOUBLE)
    explainer = fxlrp.compile(Swish().eval(), "conserving", start=lambda output, target: relevance)
    explanation = explainer(torch.randn(2, 3, dtype=DOUBLE))
    assert torch.equal(explanation.relevance, relevance)


def test_the_numerator_of_a_quotient_takes_all_however_bounded():
    class Quotient(nn.Module):
        def forward(self, x):
            return x.sigmoid() / (1 + x.abs().sum(1, keepdim=True))

    relevance = torch.rand(2, 3, dtype=DOUBLE)
    explainer = fxlrp.compile(Quotient().eval(), "conserving", start=lambda output, target: relevance)
    x = torch.randn(2, 3, dtype=DOUBLE)
    assert torch.equal(explainer(x).relevance, relevance)
    assert [row.node for row in explainer.ledger(x)] == ["div", "sigmoid"]


def test_gate_rules():
    r = torch.ones(1, 2)
    assert ToSignal()(r, gate=1).operands[1] is None
    assert ToSignal()(r, gate=0).operands[0] is None
    for result in (ToSignal()(r, gate=None), Halves()(r, gate=1)):
        assert [share.tolist() for share in result.operands] == [[[0.5, 0.5]]] * 2


# Max pooling ---------------------------------------------------------------------------------

POOLS = {
    "max_pool1d": (nn.MaxPool1d(2), (2, 3, 6)),
    "max_pool2d": (nn.MaxPool2d(2), (2, 3, 4, 6)),
    "overlapping": (nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 7, 7)),
    "ceil": (nn.MaxPool2d(3, stride=2, ceil_mode=True), (2, 3, 6, 6)),
    "dilated": (nn.MaxPool2d(2, stride=1, dilation=2, padding=1), (2, 3, 5, 5)),
    "max_pool3d": (nn.MaxPool3d(2), (2, 2, 4, 4, 2)),
    "adaptive": (nn.AdaptiveMaxPool2d((2, 3)), (2, 3, 5, 7)),
    "adaptive, keeping an axis": (nn.AdaptiveMaxPool2d((None, 1)), (2, 3, 5, 7)),
}


def pooled(name, rule, x, relevance):
    preset = fxlrp.Preset("one rule", selection=rule)
    return fxlrp.compile(nn.Sequential(POOLS[name][0]).eval(), preset, start=lambda output, target: relevance)


@pytest.mark.parametrize("name", POOLS)
def test_the_winner_takes_what_its_window_received(name):
    pool, shape = POOLS[name]
    x = torch.randn(shape, dtype=DOUBLE)
    relevance = torch.randn_like(pool(x))
    got = pooled(name, Winner(), x, relevance)(x).relevance
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pool(leaf), leaf, relevance)  # the gradient of max picks the winner
    assert_close(got, gradient)


@pytest.mark.parametrize("name", POOLS)
def test_the_average_shares_by_the_positive_values_of_the_pools_own_window(name):
    pool, shape = POOLS[name]
    x = torch.randn(shape, dtype=DOUBLE)
    relevance = torch.rand_like(pool(x))
    explainer = pooled(name, WindowAverage(ZPlus(vanishing="absorb")), x, relevance)
    # The window of an output is where its gradient can be: found by making each element win in turn.
    flat = x[:1, :1].flatten(1)
    count = flat.shape[1]
    basis = (10 * torch.eye(count, dtype=DOUBLE)).reshape(count, 1, *shape[2:])
    member = (pool(basis).flatten(1) > 5).double().T  # (outputs, inputs)
    c = member * x[:1, :1].relu().flatten(1)
    z = c.sum(1)
    s = torch.where(z == 0, 0, relevance[:1, :1].flatten() / torch.where(z == 0, 1, z))
    assert_close(explainer(x).relevance[0, 0].flatten(), c.T @ s)


@pytest.mark.parametrize("name", POOLS)
def test_pools_conserve_whatever_the_signs(name):
    pool, shape = POOLS[name]
    x = -torch.rand(shape, dtype=DOUBLE) - 1
    relevance = torch.rand_like(pool(x))
    for rule in (Winner(), WindowAverage()):
        assert_conserves(pooled(name, rule, x, relevance), x)


@pytest.mark.parametrize("rule", [Winner(), WindowAverage()])
def test_a_pool_behind_padding_of_minus_infinity_conserves(rule):
    class SamePool(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)

    x = -torch.rand(2, 3, 4, 4, dtype=DOUBLE)
    relevance = torch.rand_like(x)
    preset = fxlrp.Preset("one rule", selection=rule)
    assert_conserves(fxlrp.compile(SamePool().eval(), preset, start=lambda output, target: relevance), x)


def test_the_released_code_averages_two_by_two_whatever_the_pool():
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    x = torch.rand(1, 1, 4, 4, dtype=DOUBLE)
    relevance = torch.rand(1, 1, 2, 2, dtype=DOUBLE)
    rule = WindowAverage(Epsilon(0), kernel=(2, 2))
    preset = fxlrp.Preset("released", selection=rule)
    got = fxlrp.compile(pool.eval(), preset, start=lambda output, target: relevance)(x).relevance
    tiles = lambda v: F.interpolate(v, scale_factor=2, mode="nearest")  # noqa: E731
    assert_close(got, x * tiles(relevance / (4 * F.avg_pool2d(x, 2))))


def test_rules_are_equal_by_their_parameters():
    assert ZPlus() == ZPlus(vanishing="rescale")
    assert ZPlus() != ZPlus(vanishing="spread")
    assert len({Epsilon(1e-3), Epsilon(1e-3), Epsilon(1e-2)}) == 2
    assert repr(SignedSplit(0.5)) == "SignedSplit(epsilon=0.5)"
