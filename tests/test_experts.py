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


class Dense(Experts):
    """Every expert takes every token; a gate with zeros."""

    def forward(self, x):
        scores = self.router(x)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(2, -1).indices, 1.0)
        every = torch.stack([expert(x) for expert in self.experts], -2)
        return self.head((every * (chosen * scores.softmax(-1)).unsqueeze(-1)).sum(-2).mean(1))


@pytest.mark.parametrize("kind", [Looped, Masked])
@pytest.mark.parametrize("preset", ["conserving", "epsilon", "attnlrp", "evidence"])
def test_experts_in_a_loop_are_explained(preset, kind):
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert_explains(
        kind(), x, preset=preset, start="logit", absorbs=("bias", "constant", "padding", "stabilizer")
    )


def test_a_loop_and_a_dense_gate_are_the_same_function():
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    preset = fxlrp.presets.epsilon(1e-12, 1e-12)
    found = [fxlrp.compile(model, preset, start="logit")(x, target=0).relevance for model in (Looped(), Dense())]
    assert_close(*found, limit=1e-6)


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


def test_experts_of_transformers_are_grouped_by_an_operation_of_its_own():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_labels": 4}
    config = transformers.MixtralConfig(**sizes, **heads)
    torch.manual_seed(0)
    model = transformers.MixtralForSequenceClassification(config).eval()
    ids = torch.randint(1, 32, (2, 6), generator=torch.Generator().manual_seed(1))
    explainer = fxlrp.compile(model, output="logits")
    assert_close(explainer(ids).output.logits, model(ids).logits)
    ledger = explainer.ledger(ids)
    assert float((ledger.error / ledger.start).abs().max()) < 1e-4
