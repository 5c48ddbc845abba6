"""Mixtures of experts: which items a router gave an expert is known by the owners of its rows."""

import pytest
import torch
from checks import assert_close, assert_explains
from torch import nn

import fxlrp
from fxlrp.steps.batch_axis import BatchAxis, OwnedPosition, Position, indexed, reshaped, spread_items, sum_items
from fxlrp.steps.matrix_product import grouped_product, grouped_transpose


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.router, self.head = nn.Linear(8, 4, bias=False), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.SiLU()) for _ in range(4))
        self.double().eval()


class Looped(Experts):
    """Each expert takes the tokens that chose it, of whichever item."""

    def forward(self, x):
        batch, tokens, features = x.shape
        x = x.reshape(-1, features)
        share, chosen = self.router(x).softmax(-1).topk(2, -1)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            result = result.index_add(0, token, expert(x[token]) * share[token, slot, None])
        return self.head(result.view(batch, tokens, features).mean(1))


class Masked(Experts):
    """One expert for each token; results are written where the tokens were."""

    def forward(self, x):
        batch, tokens, features = x.shape
        x = x.reshape(-1, features)
        share, chosen = self.router(x).softmax(-1).max(-1)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            result[mine] = expert(x[mine]) * share[mine, None]
        return self.head(result.view(batch, tokens, features).mean(1))


class Asked(Experts):
    """Experts to which no token goes are passed over; tokens and their shares are picked by masks."""

    def forward(self, x):
        batch, tokens, features = x.shape
        x = x.reshape(-1, features)
        share, chosen = self.router(x).softmax(-1).topk(2, -1)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                token = mine.any(-1)
                result[token] = result[token] + expert(x[token]) * share[mine].unsqueeze(-1)
        return self.head(result.view(batch, tokens, features).mean(1))


class Counted(Experts):
    """Tokens in the order of their experts, and how many each one gets as a list of numbers."""

    def forward(self, x):
        batch, tokens, features = x.shape
        x = x.reshape(-1, features)
        share, chosen = self.router(x).softmax(-1).topk(2, -1)
        counts = chosen.new_zeros(len(chosen), 4).scatter_(1, chosen, 1).sum(0).tolist()
        order, start, results = chosen.view(-1).argsort(), 0, []
        ordered = x[order // 2]
        for expert, count in zip(self.experts, counts, strict=True):
            if count == 0:
                continue
            results.append(expert(ordered[start : start + count]))
            start += count
        results = torch.cat(results)
        result = torch.empty_like(results)
        result[order] = results
        result = (result.view(*chosen.shape, -1) * share.unsqueeze(-1)).sum(1)
        return self.head(result.view(batch, tokens, features).mean(1))


class Dense(Experts):
    """Every expert takes every token; a gate with zeros."""

    def forward(self, x):
        scores = self.router(x)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(2, -1).indices, 1.0)
        every = torch.stack([expert(x) for expert in self.experts], -2)
        return self.head((every * (chosen * scores.softmax(-1)).unsqueeze(-1)).sum(-2).mean(1))


PRESETS = ("conserving", "evidence", "attnlrp", "epsilon")


@pytest.mark.parametrize(("kind", "presets"), [
    (Looped, PRESETS), (Masked, PRESETS), (Asked, PRESETS), (Counted, PRESETS[:1]),
    pytest.param(Counted, PRESETS[1:], marks=pytest.mark.slow),  # is read anew for each item and preset
])  # fmt: skip
def test_experts_in_a_loop_are_explained(kind, presets, request):
    if kind in (Looped, Masked):  # the others look at values, and are read once more for others
        request.getfixturevalue("exported_once")
    model, x = kind(), torch.randn(3, 5, 8, dtype=torch.float64)
    absorbs = ("bias", "constant", "padding", "stabilizer")
    for preset in presets:
        assert_explains(model, x, preset=preset, start="logit", absorbs=absorbs)


def test_a_loop_and_a_dense_gate_are_the_same_function():
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    preset = fxlrp.presets.epsilon(1e-12, 1e-12)
    wanted = fxlrp.compile(Dense(), preset, start="logit")(x, target=0).relevance
    for model in (Looped(), Asked(), Counted()):
        assert_close(fxlrp.compile(model, preset, start="logit")(x, target=0).relevance, wanted, limit=1e-6)


def test_owners_are_followed_and_summed():
    position = indexed(Position(0), [torch.tensor([5, 0, 2])], [6, 4], 3)  # two entries an item
    assert position.owners.tolist() == [2, 0, 1]
    axis = BatchAxis(*position[:2], 3, position.owners)
    rows = torch.arange(12.0).reshape(3, 4)
    assert sum_items(rows, axis).tolist() == [22.0, 38.0, 6.0]
    assert spread_items(torch.tensor([1.0, 2.0, 3.0]), rows, axis).flatten().tolist() == [3.0, 1.0, 2.0]


def test_a_reshape_that_mixes_owners_is_refused():
    position = OwnedPosition(0, 1, torch.tensor([0, 0, 1, 1]))
    assert reshaped(position, [4, 3], [2, 2, 3], 2).owners.tolist() == [0, 1]
    with pytest.raises(ValueError, match="mixed by a reshape"):
        reshaped(OwnedPosition(0, 1, torch.tensor([0, 1, 1, 1])), [4, 3], [2, 2, 3], 2)


def test_the_grouped_product_and_its_transpose():
    x, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    ends = torch.tensor([2, 2, 6])
    expected = torch.cat([x[:2] @ weight[0], x[2:] @ weight[2]])
    assert_close(grouped_product(x, weight, ends), expected)
    s = torch.randn(6, 5, dtype=torch.float64)
    back = grouped_transpose(s, weight, ends)
    assert_close((back * x).sum(), (s * expected).sum())


FORMS = ("grouped_mm", "batched_mm", "eager")
"""How transformers runs experts: groups of rows, a product for each row, a loop over the experts that were hit."""


@pytest.fixture(scope="module")
def experts_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_labels": 4}

    def made(form, dtype=torch.float32):
        config = transformers.MixtralConfig(**sizes, **heads, experts_implementation=form)
        torch.manual_seed(0)
        return transformers.MixtralForSequenceClassification(config).to(dtype).eval()

    return made, torch.randint(1, 32, (2, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_experts_of_transformers_are_explained_in_each_form(experts_of_transformers, form):
    made, ids = experts_of_transformers
    dtype, limit = (torch.float32, 1e-3) if form == "grouped_mm" else (torch.float64, 1e-10)  # which has no float64
    model = made(form, dtype)
    explainer = fxlrp.compile(model, output="logits")
    usual = fxlrp.compile(made("batched_mm", torch.float64), output="logits")
    for some in (ids, ids.flip(1)):  # the second chooses other experts
        explanation, ledger = explainer(some, target=1), explainer.ledger(some, target=1)
        assert_close(explanation.output.logits, model(some).logits)
        # What the loop adds up one expert after the other is joined, and a join has a rule of its own.
        alike = 1e-3 if form == "eager" else limit
        assert_close(explanation.relevance.double(), usual(some, target=1).relevance, alike)
        assert float((ledger.error / ledger.start).abs().max()) < limit


def test_shapes_of_a_grouped_product_are_known_where_torch_refuses_it_without_values(experts_of_transformers):
    made, ids = experts_of_transformers
    explainer = fxlrp.compile(made("grouped_mm"), output="logits", start="logit")
    assert explainer(ids, target=[1, 2]).relevance.shape[:2] == (2, 2)
    assert explainer.shapes


def test_questions_that_are_not_asked_again_are_passed_over():
    class Careful(nn.Module):
        """Looks at values where it is run, and not where it is read, as the masks of transformers are made."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, mask):
            if not torch.compiler.is_exporting() and mask.all():
                return self.layer(x[:, : len(mask.tolist())]).mean(1)
            hidden = self.layer(x) * mask[..., None]
            if mask.sum() > 1:
                hidden = hidden.relu()
            return hidden.mean(1)

    torch.manual_seed(0)
    model = Careful().double().eval()
    x, mask = torch.randn(2, 5, 4, dtype=torch.float64), torch.arange(5).expand(2, 5) < torch.tensor([[3], [4]])
    explanation = fxlrp.compile(model)(x, mask)
    assert_close(explanation.output, model(x, mask))
