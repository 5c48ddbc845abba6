"""Integer inputs: where they are looked up, how they are moved before, and where their relevance belongs."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_explains, assert_items_independent
from torch import nn

import fxlrp


class Ids(nn.Module):
    def __init__(self, look_up, width, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.look_up, self.head = look_up, nn.Linear(width, 3)
        for name, part in parts.items():
            self.register_buffer(name, part) if type(part) is torch.Tensor else setattr(self, name, part)
        self.double().eval()

    def forward(self, ids):
        return self.head(self.look_up(self, ids))


def table(rows=20, features=6):
    return nn.Embedding(rows, features)


LOOKUPS = {
    "embedding": (lambda m, i: m.e(i).mean(1), 6, {"e": table()}),
    "transposed": (lambda m, i: m.e(i.t()).mean(0), 6, {"e": table()}),
    "each column in a table of its own": (
        lambda m, i: torch.cat([e(i[:, k]) for k, e in enumerate(m.e)], 1), 10,
        {"e": nn.ModuleList(table(20, 2) for _ in range(5))},
    ),
    "shifted by offsets": (lambda m, i: m.e(i + m.n).sum(1), 6, {"e": table(40), "n": torch.arange(0, 20, 4)}),
    "written over": (lambda m, i: m.e(i.masked_fill(i < 3, 0)).mean(1), 6, {"e": table()}),
    "hashed": (lambda m, i: m.e(i % 7).sum(1), 6, {"e": table(7)}),
    "a parameter indexed": (lambda m, i: m.w[i].mean(1), 6, {"w": nn.Parameter(torch.randn(20, 6))}),
    "a vector indexed": (lambda m, i: m.w[i], 5, {"w": nn.Parameter(torch.randn(20))}),
    "index_select of flat ids": (
        lambda m, i: torch.index_select(m.w, 0, i.view(-1)).view(-1, 5, 6).mean(1), 6,
        {"w": nn.Parameter(torch.randn(20, 6))},
    ),
    "one-hot": (lambda m, i: m.w(F.one_hot(i, 20).double().transpose(1, 2)).amax(2), 6, {"w": nn.Conv1d(20, 6, 3)}),
    "one-hot codes added up": (lambda m, i: F.one_hot(i, 20).sum(1).double(), 20, {}),
    "bag, mean": (lambda m, i: m.e(i), 6, {"e": nn.EmbeddingBag(20, 6)}),
    "bag, largest": (lambda m, i: m.e(i), 6, {"e": nn.EmbeddingBag(20, 6, mode="max")}),
    "bag with padding": (lambda m, i: m.e(i), 6, {"e": nn.EmbeddingBag(20, 6, padding_idx=1)}),
    "bag by offsets": (
        lambda m, i: m.e(i.reshape(-1), torch.arange(0, i.numel(), 5)), 6, {"e": nn.EmbeddingBag(20, 6, mode="sum")}
    ),
}  # fmt: skip
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 1, 1, 19, 0], [3, 3, 3, 3, 3]])


@pytest.mark.parametrize("name", LOOKUPS)
def test_relevance_begins_where_integers_are_looked_up(name):
    look_up, width, parts = LOOKUPS[name]
    explainer, _ = assert_explains(
        Ids(look_up, width, **parts), IDS, start="logit", absorbs=("bias", "constant", "padding", "stabilizer")
    )
    assert explainer(IDS).relevance.shape[:2] == IDS.shape


def test_what_is_put_around_numbers_is_in_their_relevance():
    model = Ids(lambda m, i: m.e(F.pad(i, (1, 0), value=7)).mean(1), 6, e=table())
    explainer, _ = assert_explains(model, IDS, start="logit")
    assert explainer(IDS).relevance.shape == (3, 6, 6)


def test_a_mask_that_chooses_numbers_is_not_taken_for_them():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.head = table(), nn.Linear(6, 3)

        def forward(self, keep, ids):
            return self.head(self.e(torch.where(keep > 0, ids, 0)).mean(1))

    keep = torch.ones_like(IDS)
    keep[:, 1] = 0
    explanation = fxlrp.compile(Chosen().double().eval(), "epsilon", start="logit")(keep, IDS)
    assert not explanation.by_input["keep"].any()
    relevance = fxlrp.token_relevance(explanation.by_input["ids"])
    assert (relevance[:, 1] == 0).all()
    assert (relevance[:, [0, 2, 3, 4]] != 0).all()


# By the lookup of what is joined, and by the join of lookups, with features behind.
JOINED = {
    "a token of the model's own in front": (
        lambda m, i: m.e(torch.cat([m.cls.expand(len(i), 1), i], 1)),
        lambda m, i: torch.cat([m.e(m.cls.expand(len(i), 1)), m.e(i)], 1),
    ),
    "counted from the last axis, and cast": (
        lambda m, i: m.e(torch.cat((i, i.new_ones(i.shape[0], 2)), dim=-1).to(torch.int32).long()),
        lambda m, i: torch.cat([m.e(i), m.e(i.new_ones(i.shape[0], 2))], 1),
    ),
    "a separator between two parts": (
        lambda m, i: m.e(torch.cat([i[:, :2], torch.full((len(i), 1), 7), i[:, 2:]], 1)),
        lambda m, i: torch.cat([m.e(i)[:, :2], m.e(torch.full((len(i), 1), 7)), m.e(i)[:, 2:]], 1),
    ),
    "cut, and shifted by one number": (
        lambda m, i: m.e((torch.cat([i, i + 1], 1) + 3)[:, 1:8]),
        lambda m, i: torch.cat([m.e(i + 3), m.e(i + 4)], 1)[:, 1:8],
    ),
    "columns put side by side": (
        lambda m, i: m.e(torch.stack([i[:, 0], i[:, 3]], -1)), lambda m, i: m.e(i[:, [0, 3]])
    ),
    "where a condition holds": (
        lambda m, i: m.e(torch.where(i > 3, i, 2)),
        lambda m, i: torch.where((i > 3)[..., None], m.e(i), m.e.weight[2]),
    ),
    "method where": (
        lambda m, i: m.e(i.where(i > 3, i.flip(1))),
        lambda m, i: torch.where((i > 3)[..., None], m.e(i), m.e(i.flip(1))),
    ),
    "shifted to the right": (
        lambda m, i: m.e(shifted(i)),
        lambda m, i: torch.cat([m.e(torch.full((len(i), 1), 2)), m.e(i)[:, :-1]], 1),
    ),
    "shifted to the right, and filled": (
        lambda m, i: m.e((d := shifted(i)).masked_fill(d == 3, 0)),
        lambda m, i: torch.where(
            (shifted(i) == 3)[..., None], m.e.weight[0],
            torch.cat([m.e(torch.full((len(i), 1), 2)), m.e(i)[:, :-1]], 1),
        ),
    ),
    "written where a condition holds": (
        lambda m, i: m.e(i.index_put((i < 2,), torch.tensor(4))),
        lambda m, i: torch.where((i < 2)[..., None], m.e.weight[4], m.e(i)),
    ),
    "a parameter indexed": (
        lambda m, i: m.e.weight[torch.cat([m.cls.expand(len(i), 1), i], 1)],
        lambda m, i: torch.cat([m.e(m.cls.expand(len(i), 1)), m.e(i)], 1),
    ),
}  # fmt: skip


def shifted(ids):
    moved = ids.new_zeros(ids.shape)
    moved[:, 1:] = ids[:, :-1].clone()
    moved[:, 0] = 2
    return moved


@pytest.mark.parametrize("preset", ["conserving", "evidence", "attnlrp"])
@pytest.mark.parametrize("name", JOINED)
def test_joined_numbers_are_looked_up_part_by_part(name, preset):
    parts = {"e": table(30), "cls": torch.tensor([[9]]), "layer": nn.Linear(6, 6)}

    def made(look_up):
        return Ids(lambda m, i: m.layer(torch.relu(look_up(m, i))).mean(1), 6, **parts)

    model, apart = map(made, JOINED[name])
    explainer, _ = assert_explains(
        model, IDS, preset=preset, start="logit", absorbs=("bias", "constant", "padding", "stabilizer")
    )
    found = fxlrp.token_relevance(explainer(IDS).relevance)
    assert found.shape == IDS.shape
    assert_close(found, fxlrp.token_relevance(fxlrp.compile(apart, preset, start="logit")(IDS).relevance))


def test_numbers_of_two_inputs_side_by_side_have_their_own_relevance():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.e, self.head = table(), nn.Linear(12, 3)

        def forward(self, user, item):
            return self.head(self.e(torch.stack([user, item + 10], 1)).flatten(1))

    model, user, item = Pair().double().eval(), torch.tensor([1, 2, 3]), torch.tensor([4, 9, 0])
    explainer = fxlrp.compile(model, "epsilon", start="logit")
    explanation = explainer(user, item, target=1)
    weight = model.head.weight[1].detach()
    for name, ids, part in (("user", user, weight[:6]), ("item", item + 10, weight[6:])):
        assert_close(explanation.by_input[name], model.e.weight[ids].detach() * part, limit=1e-4)
    assert_close(explainer(user[1:2], item[1:2], target=1).by_input["user"], explanation.by_input["user"][1:2])


def test_relevance_of_a_column_is_where_the_column_is():
    model = Ids(*LOOKUPS["each column in a table of its own"][:2], e=nn.ModuleList(table(20, 2) for _ in range(5)))
    with torch.no_grad():
        model.head.weight[:, 2:] = 0  # only the first column counts
    relevance = fxlrp.token_relevance(fxlrp.compile(model, "epsilon", start="logit")(IDS).relevance)
    assert (relevance[:, 0] != 0).all()
    assert (relevance[:, 1:] == 0).all()


def test_a_table_and_an_embedding_are_the_same_lookup():
    weight = torch.randn(20, 6)
    embedding = table()
    embedding.weight.data = weight.clone()
    one = Ids(lambda m, i: m.e(i).mean(1), 6, e=embedding)
    other = Ids(lambda m, i: m.w[i].mean(1), 6, w=nn.Parameter(weight))
    relevance = [fxlrp.compile(model, "epsilon", start="logit")(IDS).relevance for model in (one, other)]
    assert_close(*relevance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_that_are_computed_with_are_numbers(dtype):
    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return self.layer(x.float() / 255)

    model, x = Bytes().eval(), torch.randint(0, 200, (3, 5)).to(dtype)
    explainer = fxlrp.compile(model, "conserving", start="logit")
    explanation = explainer(x)
    assert_close(explanation.output, model(x))
    assert explanation.relevance.is_floating_point()
    assert_items_independent(explainer, x)


def test_a_mask_beside_token_numbers_stays_a_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.head = table(), nn.Linear(6, 3)

        def forward(self, ids, mask):
            return self.head((self.e(ids) * mask.float().unsqueeze(-1)).sum(1))

    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    explanation = fxlrp.compile(Masked().eval(), "conserving", start="logit")(IDS, mask)
    assert (explanation.by_input["mask"] == 0).all()
    assert (explanation.by_input["ids"][:, 3:] == 0).all()


class Table(nn.Module):
    """A table of numbers, of which the first columns are cast and looked up."""

    def __init__(self):
        super().__init__()
        self.kinds, self.places, self.head = nn.Embedding(10, 4), nn.Embedding(5, 3), nn.Linear(9, 3)

    def forward(self, rows):
        kind, place = self.kinds(rows[:, 0].long()), self.places(rows[:, 1:2].long()).squeeze(1)
        return self.head(torch.cat([kind, place, rows[:, 2:]], 1))


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, rows):
        return self.head(self.table(rows.long()).mean(1))


@pytest.mark.parametrize("preset", ["conserving", "evidence", "epsilon"])
def test_columns_of_a_table_get_what_was_looked_up_by_them(preset):
    torch.manual_seed(0)
    model, rows = Table().double().eval(), torch.tensor([[3, 1, 0.5, -1.0], [9, 4, 2.0, 0.1]], dtype=torch.float64)
    explainer = fxlrp.compile(model, preset, start="logit")
    explanation, ledger = explainer(rows, target=1), explainer.ledger(rows, target=1)
    assert explanation.relevance.shape == rows.shape
    assert float(ledger.error.abs().max()) < 1e-9
    if preset == "epsilon":  # a linear model: what each column adds to the logit
        weight = model.head.weight[1]
        looked_up = model.kinds.weight[[3, 9]] @ weight[:4], model.places.weight[[1, 4]] @ weight[4:7]
        expected = torch.stack([*looked_up, *(rows[:, 2:] * weight[7:]).T], 1)
        torch.testing.assert_close(explanation.relevance, expected, atol=1e-5, rtol=0)


def test_numbers_may_stand_for_integers_that_are_cast():
    torch.manual_seed(0)
    explainer, ids = fxlrp.compile(Cast().eval(), "conserving"), torch.tensor([[1, 2, 3], [4, 5, 6]])
    of_integers, of_numbers = explainer(ids).relevance, explainer(ids.float()).relevance
    assert of_numbers.shape == (2, 3)
    torch.testing.assert_close(of_integers.sum(-1), of_numbers)


@pytest.mark.parametrize("pick", [
    lambda ids, order: ids[order], lambda ids, order: ids.index_select(0, order), lambda ids, order: ids[order, 1:],
], ids=["an index", "index_select", "an index and a slice"])  # fmt: skip
def test_items_that_are_looked_up_in_another_order_keep_their_relevance(pick):
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.rnn, self.head = table(), nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, ids, lengths):
            _, order = lengths.sort(descending=True)
            return self.head(self.rnn(self.words(pick(ids, order)))[0][:, -1][order.argsort()])

    ids = torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(0))
    model = Sorted().double().eval()
    assert_explains(model, ids, torch.tensor([2, 5, 3]), absorbs=("bias", "constant"))


def test_what_depends_on_places_alone_is_told():
    class Nearest(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Parameter(torch.randn(7, 3))

        def forward(self, x):
            return self.codes[torch.cdist(x, torch.eye(7, x.shape[1])).argmin(-1)]

    with pytest.raises(fxlrp.errors.CaptureError, match="does not depend on the input, but by places"):
        fxlrp.compile(Nearest().eval(), "conserving")(torch.randn(2, 4))


def test_shares_of_a_bag_may_be_of_the_input():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.scores, self.bag, self.head = nn.Linear(6, 9), nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 3)
            self.written = False

        def forward(self, x):
            shares, chosen = self.scores(x).topk(2, -1)
            if self.written:
                return self.head((self.bag.weight[chosen] * shares.unsqueeze(-1)).sum(1))
            return self.head(self.bag(chosen, per_sample_weights=shares))

    model, x = Memory().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    assert_explains(model, x, absorbs=("bias", "constant"))
    bag = fxlrp.compile(model, "conserving")(x).relevance
    model.written = True
    assert_close(bag, fxlrp.compile(model, "conserving")(x).relevance)


class Factors(nn.Module):
    """Users and things, by vectors whose products are what is recommended."""

    def __init__(self, users, things):
        super().__init__()
        self.u, self.t = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5, 6))
        self.users, self.things = users, things

    def forward(self, user, thing):
        return (self.users(self, user) * self.things(self, thing)).sum(-1)


FACTORS = {
    "all of each": (lambda m, i: m.u[i, :], lambda m, i: m.t[i, ...]),
    "of a part": (lambda m, i: torch.cat([m.u, m.t])[:4, :][i, :], lambda m, i: torch.cat([m.u, m.t])[4:][i]),
    "some of each": (lambda m, i: m.u[i, 1:4], lambda m, i: m.t[i, None, ..., ::2].squeeze(1)),
    "one of each": (lambda m, i: m.u[i, :1], lambda m, i: m.t[i, 1][:, None]),
    "columns": (lambda m, i: m.u.T[:, i].T, lambda m, i: m.t.t().index_select(1, i).t()),
    "planes": (lambda m, i: m.u.view(4, 2, 3).transpose(0, 1)[:, i].sum(0), lambda m, i: m.t.view(5, 2, 3)[i, 1]),
    "of a stack": (lambda m, i: m.u[None][0, i], lambda m, i: torch.stack([m.t, m.t])[1][i]),
}


@pytest.mark.parametrize("preset", ["evidence", "conserving"])
@pytest.mark.parametrize("name", FACTORS)
def test_entries_of_a_table_are_looked_up_by_any_index(name, preset):
    torch.manual_seed(0)
    model, given = Factors(*FACTORS[name]).double().eval(), (torch.tensor([0, 3, 1]), torch.tensor([4, 0, 2]))
    explainer = fxlrp.compile(model, preset, start="output")
    together, ledger = explainer(*given), explainer.ledger(*given)
    assert_close(together.output, model(*given))
    assert ledger.error.abs().max() < 1e-9 * ledger.start.abs().max()
    for of_input in together.relevance:
        assert bool(of_input.any())
    for item in range(3):
        alone = explainer(*(each[item : item + 1] for each in given))
        for one, other in zip(alone.relevance, together.relevance, strict=True):
            assert_close(one[0], other[item])
