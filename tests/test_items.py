"""Where the batch is: positions and sums over items against tensors of labels."""

import math

import pytest
import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxlrp
from fxlrp.errors import PropagationError
from fxlrp.steps.batch_axis import (
    BatchAxis,
    Position,
    expanded,
    indexed,
    inserted,
    item_sum,
    permuted,
    removed,
    rescale,
    reshaped,
    spread_items,
    swapped,
)

BATCH = 3


def labels(sizes, axis):
    """Each element labelled with the item that it belongs to."""
    shape = [*sizes[:axis], BATCH, *sizes[axis:]]
    index = [1] * len(shape)
    index[axis] = BATCH
    return torch.arange(BATCH).reshape(index).expand(shape).clone()


def found(value, position):
    """The labels that a position says."""
    items = BatchAxis(position.axis, position.outer, BATCH)
    return spread_items(torch.arange(BATCH), value, items).expand(value.shape)


def assert_tracks(value, position):
    assert torch.equal(found(value, position), value)


@st.composite
def starts(draw):
    """A tensor of labels and where its batch is; no other axis is as long as the batch."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 4, 5]), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(sizes)))
    return labels(sizes, axis), Position(axis)


def cut(draw, value):
    """A reshape that merges neighbouring axes and splits them elsewhere, and keeps items whole."""
    runs, merged = list(value.shape), []
    while runs:
        count = draw(st.integers(1, min(3, len(runs))))
        merged.append(math.prod(runs[:count]))
        runs = runs[count:]
    shape = []
    for size in merged:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        first = draw(st.sampled_from(divisors))
        shape += [first, size // first]
    return value.reshape(shape)


def whole(value):
    """Whether an axis of ``value`` runs over the items as blocks: where a position can say where they are."""
    for axis, size in enumerate(value.shape):
        row = value.movedim(axis, 0).reshape(size, -1)
        if not (row == row[:, :1]).all():
            continue
        column = row[:, 0]
        for outer in [d for d in range(1, size + 1) if size % (d * BATCH) == 0]:
            inner = size // (outer * BATCH)
            block = torch.arange(BATCH)[None, :, None].expand(outer, BATCH, inner)
            if torch.equal(column.reshape(outer, BATCH, inner), block):
                return True
    return False


MOVES = ["permute", "transpose", "reshape", "reshape", "unsqueeze", "select", "expand", "index"]


def moved(draw, value, position):
    """One random move of a tensor, and of the position of its batch."""
    rank = value.dim()
    move = draw(st.sampled_from(MOVES))
    if move == "permute":
        dims = draw(st.permutations(range(rank)))
        dims = [d - rank if draw(st.booleans()) else d for d in dims]
        return value.permute(dims), permuted(position, dims, rank)
    if move == "transpose":
        first, second = (draw(st.integers(-rank, rank - 1)) for _ in range(2))
        return value.transpose(first, second), swapped(position, first, second, rank)
    if move == "unsqueeze":
        dim = draw(st.integers(-rank - 1, rank))
        return value.unsqueeze(dim), inserted(position, dim, rank)
    if move == "expand":
        return value.expand(2, *value.shape), expanded(position, rank, rank + 1)
    others = [d for d in range(rank) if d != position.axis]
    if move == "select" and others:
        dim = draw(st.sampled_from(others))
        return value.select(dim, 0), removed(position, dim - rank if draw(st.booleans()) else dim, rank)
    if move == "index" and others:
        picks = draw(st.lists(st.sampled_from(others), min_size=1, max_size=2, unique=True))
        length = draw(st.sampled_from([(2,), (2, 2)]))
        indices = [torch.zeros(length, dtype=torch.long) if d in picks else None for d in range(max(picks) + 1)]
        return torch.ops.aten.index(value, indices), indexed(position, indices)
    after = cut(draw, value)
    if not whole(after):
        return value, position
    return after, reshaped(position, value.shape, after.shape, BATCH)


@given(st.data())
def test_a_position_follows_its_batch_through_any_moves(data):
    value, position = data.draw(starts())
    assert_tracks(value, position)
    for _ in range(data.draw(st.integers(1, 5))):
        value, position = moved(data.draw, value, position)
        assert_tracks(value, position)


def test_windows_folded_into_the_batch_are_found_and_undone():
    value, position = labels([4, 4], 0), Position(0)  # (batch, 4, 4)
    split = value.reshape(BATCH, 2, 2, 2, 2)
    assert_tracks(split, position := reshaped(position, value.shape, split.shape, BATCH))
    turned = split.permute(1, 3, 0, 2, 4)
    assert_tracks(turned, position := permuted(position, [1, 3, 0, 2, 4], 5))
    folded = turned.reshape(-1, 4)
    assert_tracks(folded, position := reshaped(position, turned.shape, folded.shape, BATCH))
    assert position == Position(0, 4)
    assert_tracks(folded.reshape(2, 2, BATCH, 4), reshaped(position, folded.shape, (2, 2, BATCH, 4), BATCH))


def test_a_reshape_that_tears_items_apart_is_refused():
    with pytest.raises(ValueError, match="torn apart"):
        reshaped(Position(1), (2, BATCH, 5), (2 * 5, BATCH), BATCH)


def test_an_index_with_truths_takes_as_many_axes_as_it_has():
    value = labels([2, 4, 5], 2)  # (2, 4, batch, 5)
    index = [torch.ones(2, 4, dtype=torch.bool)]
    assert_tracks(torch.ops.aten.index(value, index), indexed(Position(2), index))


@given(starts(), st.integers(0, 10))
def test_sums_over_items_are_the_sums_of_their_elements(start, seed):
    value, position = start
    amounts = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.stack([amounts[value == item].sum() for item in range(BATCH)])
    assert torch.allclose(item_sum(amounts, BatchAxis(*position, BATCH)), expected)
    items = BatchAxis(0, math.prod(value.shape[: position.axis]), BATCH)
    assert torch.allclose(item_sum(amounts.flatten(0, position.axis), items), expected)


def test_without_items_the_first_axis_is_the_batch():
    value = torch.randn(BATCH, 2, 4, dtype=torch.float64)
    assert torch.equal(item_sum(value), item_sum(value, BatchAxis(0, 1, BATCH)))
    assert torch.equal(item_sum(value[:, 0, 0]), value[:, 0, 0])


@given(st.data(), st.booleans())
def test_rescaling_is_the_same_wherever_the_batch_is(data, signed):
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=2))
    axis = data.draw(st.integers(0, len(sizes)))
    share = torch.randn(BATCH, *sizes, dtype=torch.float64)
    share[1] = 0
    relevance = torch.randn(BATCH, 5, dtype=torch.float64)
    if not signed:
        share, relevance = share.abs(), relevance.abs() + share.abs().flatten(1).sum(1, keepdim=True)
    expected = rescale(share, relevance, None, signed)
    assert torch.allclose(expected.flatten(1).sum(1), relevance.sum(1))
    elsewhere = rescale(
        share.movedim(0, axis), relevance.T, None, signed,
        batch_axis=BatchAxis(axis, 1, BATCH), received_batch_axis=BatchAxis(1, 1, BATCH),
    )  # fmt: skip
    assert torch.allclose(elsewhere.movedim(axis, 0), expected)


@given(starts(), st.integers(0, 3), st.integers(1, 5))
def test_a_batch_of_one_is_all_there_is_wherever_it_is_said_to_be(start, axis, outer):
    value, _ = start
    value, items = value.double(), BatchAxis(axis, outer, 1)
    assert torch.equal(item_sum(value, items), value.sum().reshape(1))
    assert torch.equal(spread_items(torch.ones(1), value, items).expand(value.shape), torch.ones(value.shape))
    assert reshaped(Position(axis, outer), [1] * 4, value.shape, 1) == Position(0)


class Together(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)


class ByList(Together):
    def forward(self, x):
        return self.head(torch.cat([part.unsqueeze(0) for part in list(self.body(x))]).tanh().mean(1))


class ByNumber(Together):
    def forward(self, x):
        return torch.stack([self.head(self.body(x[item]).relu().mean(0)) for item in range(len(x))])


class BySplit(Together):
    def forward(self, x):
        return torch.cat([self.head(self.body(part).relu().mean(1)) for part in x.split(1)])


class BySlice(Together):
    def forward(self, x):
        parts = [self.body(x[item : item + 1]).relu().transpose(1, 2).softmax(1) for item in range(x.size(0))]
        return self.head(torch.cat(parts).mean(2))


class ByHalves(Together):
    def forward(self, x):
        first, second = x.chunk(2)
        return self.head(torch.cat([self.body(first).relu(), self.body(second).relu()]).mean(1))


class ByRepeat(Together):
    def forward(self, x):
        first, second = self.body(x.repeat(2, 1, 1)).relu().chunk(2)
        return self.head((first - 2 * second).mean(1))


class ByInterleaving(Together):
    def forward(self, x):
        copies = self.body(x.repeat_interleave(2, 0)).relu().reshape(-1, 2, 5, 6)
        return self.head((copies[:, 0] * copies[:, 1]).mean(1))


class ByNarrowing(Together):
    def forward(self, x):
        for _ in x[0]:  # which symbolic tracing cannot follow
            pass
        hidden = self.body(x).relu()
        return self.head(torch.cat([hidden.narrow(1, 0, 3), hidden.narrow(-2, 4, 1)], 1).mean(1))


@pytest.mark.parametrize("preset", ["conserving", "evidence", "attnlrp"])
@pytest.mark.parametrize(
    "kind", [ByList, ByNumber, BySplit, BySlice, ByHalves, ByRepeat, ByInterleaving, ByNarrowing]
)
def test_items_that_are_taken_one_by_one_keep_what_is_theirs(kind, preset):
    torch.manual_seed(0)
    explainer = fxlrp.compile(kind().double().eval(), preset)
    x = torch.randn(4, 5, 4, dtype=torch.float64)
    explanation, ledger = explainer(x), explainer.ledger(x)
    assert float(ledger.error.abs().max()) < 1e-9
    for row in ledger.rows:
        torch.testing.assert_close(row.received, row.handed_on + row.absorbed, atol=1e-9, rtol=0)
    for item in range(4):
        one = x[[item, item]] if kind is ByHalves else x[[item]]  # one item has no halves
        torch.testing.assert_close(explainer(one).relevance[0], explanation.relevance[item])


class Pair(Together):
    """Two inputs that pass one body together, as in a siamese network, before ``meet`` takes them apart."""

    def __init__(self, dim=0):
        super().__init__()
        self.wide, self.dim = nn.Linear(12, 3), dim

    def forward(self, x, y):
        if self.dim:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        met = self.meet(self.body(torch.cat([x, y], self.dim)).relu())
        return met.mean(1 - self.dim)

    def meet(self, hidden):
        first, second = hidden.chunk(2, self.dim)
        return self.head(first * second)


class Beside(Pair):
    def meet(self, hidden):
        first, second = hidden.chunk(2, self.dim)
        return self.wide(torch.cat([first, second.flip(1 - self.dim)], dim=2))


class ByFold(Pair):
    def meet(self, hidden):
        first, second = hidden.unflatten(self.dim, (2, -1)).unbind(self.dim)
        return self.head(first - 2 * second)


class ByCut(Pair):
    def meet(self, hidden):
        count = hidden.shape[self.dim] // 2
        return self.head(hidden.narrow(self.dim, 0, count) + hidden.narrow(self.dim, count, count).relu())


class WithMore(Pair):
    """Some of the items come again, and the last of all."""

    def meet(self, hidden):
        more = torch.cat([hidden, hidden.narrow(self.dim, 1, 2)], self.dim)
        half = hidden.shape[self.dim] // 2
        return self.head(more.narrow(self.dim, 0, half) * more.narrow(self.dim, half, half))


@pytest.mark.parametrize("preset", ["conserving", "evidence"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", [Pair, Beside, ByFold, ByCut, WithMore])
def test_inputs_that_pass_a_layer_together_keep_what_is_theirs(kind, dim, preset):
    torch.manual_seed(0)
    explainer = fxlrp.compile(kind(dim).double().eval(), preset)
    x, y = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    explanation, ledger = explainer(x, y), explainer.ledger(x, y)
    assert float(ledger.error.abs().max()) < 1e-9
    for row in ledger.rows:
        torch.testing.assert_close(row.received, row.handed_on + row.absorbed, atol=1e-9, rtol=0)
    for item in range(4):
        alone = explainer(x[[item, item]], y[[item, item]])
        for mine, all_items in zip(alone.relevance, explanation.relevance, strict=True):
            torch.testing.assert_close(mine[0], all_items[item])


class Widened(nn.Module):
    """Members of an ensemble, whose axis is put in front of the batch: (members, batch, features)."""

    def __init__(self, widen):
        super().__init__()
        self.inner, self.head = nn.Parameter(torch.randn(3, 6, 6)), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.randn(3, 1, 6))
        self.register_buffer("mask", torch.randn(3, 1, 6) > 0)
        self.widen = widen

    def forward(self, x):
        return self.head(self.widen(self, x).tanh()).mean(0)


WIDENED = {
    "product": lambda self, x: x @ self.inner,
    "scale": lambda self, x: x * self.scale,
    "difference": lambda self, x: x - self.scale.exp(),
    "view of a parameter": lambda self, x: x * self.inner[:, :1],
    "expand": lambda self, x: x.expand(3, -1, -1) * self.scale,
    "expand as another": lambda self, x: x.expand_as(self.scale.expand(3, x.shape[0], 6)) * self.scale,
    "repeat": lambda self, x: x.repeat(3, 1, 1) * self.scale,
    "convolved": lambda self, x: x + torch.conv_tbc(self.scale, self.inner, self.scale[0, 0], 1),
    "mask": lambda self, x: x.masked_fill(self.mask, 0.0),
    "choice": lambda self, x: torch.where(self.mask, x, 0.5),
    "larger of two": lambda self, x: torch.maximum(x.sin(), torch.stack([x, x.tanh(), -x])),
}


@pytest.mark.parametrize("preset", ["evidence", pytest.param("conserving", marks=pytest.mark.slow), "epsilon"])
@pytest.mark.parametrize("name", WIDENED)
def test_axes_may_be_put_in_front_of_the_batch(name, preset):
    torch.manual_seed(0)
    model, x = Widened(WIDENED[name]).double().eval(), torch.randn(3, 6, dtype=torch.float64)
    explainer = fxlrp.compile(model, preset)
    together = explainer(x, target=1)
    for item in range(3):
        alone = explainer(x[item : item + 1], target=1)
        torch.testing.assert_close(together.relevance[item : item + 1], alone.relevance)
    for count in (1, 2, 5):
        ledger = explainer.ledger(torch.randn(count, 6, dtype=torch.float64), target=1)
        assert ledger.error.abs().max() < 1e-9 * max(1.0, float(ledger.start.abs().max()))


class BesideConstants(nn.Module):
    """A class token beside the tokens of one item, or constants beside each item of a loop."""

    def __init__(self, loop):
        super().__init__()
        self.token, self.head, self.loop = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 4), loop

    def forward(self, x):
        if self.loop:
            return self.head(torch.stack([torch.cat([r.flatten(1).T, torch.zeros(1, 6)]).relu().mean(0) for r in x]))
        return self.head(torch.cat([self.token, x.reshape(1, 6, -1).transpose(1, 2)], 1).relu().mean(1))


@pytest.mark.parametrize(("loop", "count"), [(False, 1), (True, 3)])
def test_constants_beside_one_item_belong_to_nobody(loop, count):
    model = BesideConstants(loop).eval()
    explainer = fxlrp.compile(model, "conserving")
    x = torch.randn(count, 6, 2, 2)
    assert_close(explainer(x, target=1).output, model(x))
    ledger = explainer.ledger(x, target=1)
    assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()


class Shifted(nn.Module):
    """Distances from the largest value of all items, which goes with their mean."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.inner(x)
        below = hidden - hidden.max()
        return self.head(torch.tanh(below - below.mean(-1, keepdim=True)))


def test_one_number_of_all_items_is_told():
    explainer, x = fxlrp.compile(Shifted().eval(), "conserving"), torch.randn(3, 4)
    with pytest.raises(PropagationError, match=r"one number of all items.*amax\(.*one item at a time"):
        explainer(x)
    ledger = explainer.ledger(x[:1])
    assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()
