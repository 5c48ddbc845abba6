"""A softmax written out gives the relevance of torch's own; what is subtracted for stability is held constant."""

import pytest
import torch
from checks import assert_close, assert_items_independent
from torch import nn

import fxlrp

DOUBLE = torch.float64
PRESETS = ("attnlrp", "evidence", "conserving", "epsilon")


def over(e, dim=-1):
    return e / e.sum(dim, keepdim=True)


SOFTMAXES = {
    "without a maximum": lambda x: over(x.exp()),
    "two exponentials": lambda x: x.exp() / torch.exp(x).sum(-1, keepdim=True),
    "amax": lambda x: over(torch.exp(x - x.amax(-1, keepdim=True))),
    "amax, detached": lambda x: over(torch.exp(x - x.amax(-1, keepdim=True).detach())),
    "max over an axis": lambda x: over(torch.exp(x - x.max(-1, keepdim=True)[0])),
    "max, by name": lambda x: over(torch.exp(x - torch.max(x, dim=-1, keepdim=True).values)),
    "max of all": lambda x: over(torch.exp(x - x.max())),
    "axes put back": lambda x: (lambda e: e / e.sum(-1)[..., None])(torch.exp(x - x.amax(-1)[..., None])),
    "maximum over more axes": lambda x: over(torch.exp(x - x.amax((-2, -1), keepdim=True))),
    "the sum expanded": lambda x: (lambda e: e / e.sum(-1, keepdim=True).expand_as(e))(
        torch.exp(x - x.amax(-1, keepdim=True).expand(x.shape))
    ),
    "times the inverse of the sum": lambda x: (lambda e: e * e.sum(-1, keepdim=True).reciprocal())(x.exp()),
    "times one over the sum": lambda x: (lambda e: (1 / e.sum(-1, keepdim=True)) * e)(x.exp()),
    "in place": lambda x: (lambda e: e.div_(e.sum(-1, keepdim=True)))(x.sub(x.amax(-1, keepdim=True)).exp_()),
    "the mean subtracted": lambda x: over(torch.exp(x - x.mean(-1, keepdim=True))),
    "the negative maximum added": lambda x: over(torch.exp(-x.amax(-1, keepdim=True) + x)),
    "by the logarithm of the sum": lambda x: torch.exp(x - x.logsumexp(-1, keepdim=True)),
    "by the logarithm of the softmax": lambda x: torch.log_softmax(x, -1).exp(),
    "torch's own of what is shifted": lambda x: torch.softmax(x - x.amax(-1, keepdim=True), -1),
}
SCALED = {
    "a temperature": lambda x: over(torch.exp((x - x.amax(-1, keepdim=True)) / 0.7)),
    "a temperature before": lambda x: (lambda z: over(torch.exp(z - z.amax(-1, keepdim=True))))(x / 0.7),
}
SOFTMINS = {
    "softmin": lambda x: over(torch.exp(x.amin(-1, keepdim=True) - x)),
    "softmin, sign in front": lambda x: over(torch.exp(-(x - x.amin(-1, keepdim=True)))),
}
LOG_SOFTMAXES = {
    "logarithm of the sum": lambda x: (lambda z: z - z.exp().sum(-1, keepdim=True).log())(x - x.amax(-1, keepdim=True)),
    "logarithm of the sum, no maximum": lambda x: x - x.exp().sum(-1, keepdim=True).log(),
    "logsumexp": lambda x: x - torch.logsumexp(x, -1, keepdim=True),
    "logsumexp, axis put back": lambda x: x - torch.logsumexp(x, -1)[..., None],
}


class Around(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.before, self.after, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.after(self.function(self.before(x))).mean(1)


class Attention(nn.Module):
    """An attention whose softmax is a function."""

    def __init__(self, function):
        super().__init__()
        self.qkv, self.after, self.function = nn.Linear(5, 18), nn.Linear(6, 3), function

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.after(self.function(q @ k.mT / 6**0.5) @ v).mean(1)


def explained(kind, function, preset, dtype=DOUBLE, way=None):
    torch.manual_seed(0)
    model, x = kind(function).eval().to(dtype), torch.randn(3, 4, 5, dtype=dtype)
    explainer = fxlrp.compile(model, preset, **({} if way is None else {"example_inputs": (x,)}))
    return explainer, explainer(x), x


def assert_same(kind, function, own, preset, dtype=DOUBLE):
    explainer, explanation, x = explained(kind, function, preset, dtype)
    _, expected, _ = explained(kind, own, preset, dtype)
    assert_close(explanation.output, expected.output)
    assert_close(explanation.relevance, expected.relevance)
    assert_close(explanation.relevance, explainer(x).relevance)
    error = explainer.ledger(x).error.abs() / explanation.start.abs()
    assert (error <= {DOUBLE: 1e-9, torch.float32: 1e-5}[dtype]).all(), error


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_by_hand_is_a_softmax(name, preset):
    for kind in (Around, Attention):
        assert_same(kind, SOFTMAXES[name], lambda x: x.softmax(-1), preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SCALED)
def test_a_shift_is_seen_behind_a_scale(name, preset):
    assert_same(Around, SCALED[name], lambda x: (x / 0.7).softmax(-1), preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SOFTMINS)
def test_a_softmin_by_hand_is_one(name, preset):
    assert_same(Around, SOFTMINS[name], lambda x: (-x).softmax(-1), preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LOG_SOFTMAXES)
def test_a_log_softmax_by_hand_is_one(name, preset):
    assert_same(Around, LOG_SOFTMAXES[name], lambda x: x.log_softmax(-1), preset)


@pytest.mark.parametrize("name", ["amax", "max of all", "axes put back", "in place"])
def test_in_single_precision_its_ledger_closes(name):
    for kind in (Around, Attention):
        assert_same(kind, SOFTMAXES[name], lambda x: x.softmax(-1), "attnlrp", torch.float32)


class Ending(nn.Module):
    """A classifier that gives probabilities, or their logarithms."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(5, 3), function

    def forward(self, x):
        return self.function(self.layer(x).mean(1))


def test_a_softmax_by_hand_at_the_end_gives_the_start():
    for preset in PRESETS:
        for function in (SOFTMAXES["amax"], SOFTMAXES["max of all"]):
            assert_same(Ending, function, lambda x: x.softmax(-1), preset)
        assert_same(Ending, LOG_SOFTMAXES["logsumexp"], lambda x: x.log_softmax(-1), preset)


def test_the_precision_that_is_asked_for_stays():
    torch.manual_seed(0)
    model, x = Around(lambda x: torch.log_softmax(x, -1, dtype=DOUBLE).exp().float()).eval(), torch.randn(3, 4, 5)
    assert_close(fxlrp.compile(model, "attnlrp")(x).output, model(x).detach())


def test_a_batch_whose_largest_value_is_subtracted_is_explained_one_by_one():
    explainer, _, x = explained(Attention, SOFTMAXES["max of all"], "attnlrp")
    assert_items_independent(explainer, x)


def test_a_sum_over_another_axis_is_no_softmax():
    model = Around(lambda x: (lambda e: e / e.sum(1, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))).eval()
    x = torch.randn(3, 4, 5)
    explainer = fxlrp.compile(model, "attnlrp")
    assert_close(explainer(x).output, model(x).detach())
    assert (explainer.ledger(x).error.abs() <= 1e-5 * explainer(x).start.abs()).all()


# What is subtracted for stability, where there is no softmax of one axis ----------------------------------------------


class EdgeSoftmax(nn.Module):
    """A softmax over the edges that end at a node, as graph attention networks have it."""

    edges = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 1, 1, 2, 2, 3]])

    def __init__(self, stable=True, log=False):
        super().__init__()
        self.stable, self.log = stable, log
        self.before, self.score, self.after = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, x):
        h = self.before(x)
        source, sink = self.edges
        at = sink.expand(len(x), -1)
        score = self.score(torch.tanh(h[:, source] + h[:, sink]))[..., 0]
        if self.stable:
            top = torch.full_like(h[..., 0], -torch.inf).scatter_reduce(1, at, score, "amax")
            score = score - top.gather(1, at)
        weight = score.exp()
        total = torch.zeros_like(h[..., 0]).scatter_add(1, at, weight).gather(1, at)
        weight = score - total.log() if self.log else weight / total
        messages = h[:, source] * weight[..., None]
        return self.after(torch.zeros_like(h).index_add(1, sink, messages)).mean(1)


class Scan(nn.Module):
    """A mean weighted by exponentials, item of a series by item, with or without a running maximum."""

    def __init__(self, stable=True):
        super().__init__()
        self.stable, self.key, self.value, self.after = stable, nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        k, v = self.key(x), self.value(x)
        top, above, below = k[:, 0], v[:, 0], torch.ones_like(v[:, 0])
        if not self.stable:
            above, below = k[:, 0].exp() * v[:, 0], k[:, 0].exp()
        for t in range(1, x.shape[1]):
            new = torch.maximum(top, k[:, t])
            old, now = (torch.exp(top - new), torch.exp(k[:, t] - new)) if self.stable else (1, k[:, t].exp())
            above, below, top = old * above + now * v[:, t], old * below + now, new
        return self.after(above / below)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_maximum_of_a_group_is_held_constant(preset):
    torch.manual_seed(0)
    model, x = EdgeSoftmax().double().eval(), torch.randn(3, 4, 5, dtype=DOUBLE)
    explainer = fxlrp.compile(model, preset)
    explanation, ledger = explainer(x), explainer.ledger(x)
    model.stable = False
    plain = fxlrp.compile(model, preset)
    assert_close(explanation.output, plain(x).output)
    assert_close(explanation.relevance, plain(x).relevance, 1e-5)  # the ε rule stabilises other sums
    assert (ledger.error.abs() <= 1e-9 * explanation.start.abs()).all()
    assert_items_independent(explainer, x)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", [EdgeSoftmax, lambda: EdgeSoftmax(log=True), Scan])
def test_in_single_precision_nothing_is_lost_at_a_maximum(preset, model):
    torch.manual_seed(0)
    model, x = model().eval(), torch.randn(3, 4, 5)
    explainer = fxlrp.compile(model, preset)
    explanation = explainer(x)
    assert (explainer.ledger(x).error.abs() <= 1e-5 * explanation.start.abs()).all()
    assert_items_independent(explainer, x)


def test_a_running_maximum_is_no_join():
    torch.manual_seed(0)
    explainer = fxlrp.compile(Scan().eval(), example_inputs=(torch.randn(3, 4, 5),))
    assert not [join for join in explainer.joins if join.name.startswith("sub")]


def test_a_maximum_that_is_not_only_subtracted_in_exponentials_is_a_branch():
    model = Around(lambda x: torch.relu(x.amax(-1, keepdim=True) - x)).eval()
    assert [join.kind for join in fxlrp.compile(model, example_inputs=(torch.randn(3, 4, 5),)).joins]
