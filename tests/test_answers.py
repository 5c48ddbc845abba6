"""What forward() asks of integers: answered as for the inputs, and asked again at each call."""

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)


class Longest(Net):
    def forward(self, x, lengths):
        places = torch.arange(int(lengths.max()))
        hidden = self.body(x[:, : int(lengths.max())]).relu() * (places < lengths[:, None])[..., None]
        return self.head(hidden.sum(1))


class Hidden(Net):
    def forward(self, x, mask):
        hidden = self.body(x).relu()
        if mask.any():
            hidden = hidden.masked_fill(mask[..., None], 0.0)
        return self.head(hidden.mean(1))


class Cut(Net):
    def forward(self, x, lengths):
        return self.head(torch.stack([self.body(item[:length]).relu().mean(0)
                                      for item, length in zip(x, lengths.tolist(), strict=True)]))  # fmt: skip


class Hit(Net):
    """Experts that some token chose, one after the other."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))

    def forward(self, x):
        batch, tokens, width = x.shape
        flat = x.reshape(-1, width)
        chosen = nn.functional.one_hot(self.router(flat).argmax(-1), 3).T
        out = flat.new_zeros(len(flat), 6)
        for expert in (chosen.sum(1) > 0).nonzero():
            (token,) = torch.where(chosen[expert].squeeze(0))
            out.index_add_(0, token, self.experts[expert](flat[token]))
        return self.head(out.reshape(batch, tokens, 6).mean(1))


class Windowed(Net):
    """Windows of two tokens, whose number is a quotient of the length, and a mask in numbers that is asked about."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)

    def forward(self, ids, mask):
        hidden = self.body(self.words(ids)).tanh()
        windows = hidden.view(len(ids), torch.div(ids.shape[1], 2, rounding_mode="trunc"), 2, -1)
        bias = (1.0 - mask.to(hidden.dtype)) * torch.tensor(-1e4)
        if (bias > 0).any():
            return self.head(windows.amax((1, 2)))
        return self.head((windows.flatten(1, 2) * (bias == 0)[..., None]).mean(1))


def test_a_quotient_of_sizes_and_a_question_about_a_mask_in_numbers():
    explainer = fxlrp.compile(made(Windowed), "epsilon", start="logit")
    for length in (4, 6):
        ids, mask = torch.arange(2 * length).view(2, length) % 9, torch.ones(2, length, dtype=torch.long)
        mask[1, 2:] = 0
        relevance = checked(explainer, ids, mask)
        assert not relevance[1, 2:].any()
        assert relevance[0].any(-1).all()


def made(kind):
    torch.manual_seed(0)
    return kind().double().eval()


X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LENGTHS = torch.tensor([5, 3, 4])


def checked(explainer, *inputs):
    """The relevance of the first input: the output is the model's, and each item is explained as if alone."""
    explanation = explainer(*inputs, target=1)
    ledger = explainer.ledger(*inputs, target=1)
    assert float(ledger.error.abs().max()) < 1e-9
    relevance = next(iter(explanation.by_input.values()))
    for item in range(len(inputs[0])):
        alone = explainer(*(value[item : item + 1] for value in inputs), target=1)
        torch.testing.assert_close(next(iter(alone.by_input.values()))[0], relevance[item])
    return relevance


@pytest.mark.parametrize("preset", ["conserving", "evidence"])
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [(Longest, (X, LENGTHS)), (Hidden, (X, torch.arange(5) >= LENGTHS[:, None])), (Cut, (X, LENGTHS)), (Hit, (X,))],
)
def test_answers_lead_through_the_model(kind, inputs, preset):
    checked(fxlrp.compile(made(kind), preset), *inputs)


@pytest.mark.parametrize(
    ("kind", "inputs", "others"),
    [
        (Longest, (X, LENGTHS), (X, torch.tensor([2, 1, 2]))),
        (Hidden, (X, torch.zeros(3, 5, dtype=torch.bool)), (X, torch.arange(5) >= LENGTHS[:, None])),
        (Hit, (X[:1, :1],), (X,)),
    ],
)
def test_another_answer_is_another_graph(kind, inputs, others):
    model = made(kind)
    explainer = fxlrp.compile(model, "conserving")
    explainer(*inputs)
    torch.testing.assert_close(explainer(*others).output, model(*others))
    assert len(explainer._engine._plans) == 2
    explainer(*inputs)
    assert len(explainer._engine._plans) == 2


def test_a_mask_that_hides_gives_nothing_to_what_it_hides():
    mask = torch.arange(5) >= LENGTHS[:, None]
    assert not checked(fxlrp.compile(made(Hidden), "conserving"), X, mask)[mask].any()


def test_a_branch_on_what_is_explained_is_refused():
    class Sign(Net):
        def forward(self, x):
            x = self.body(x)
            return self.head((x if x.sum() > 0 else -x).mean(1))

    with pytest.raises(CaptureError, match="Control flow on tensor values"):
        fxlrp.compile(made(Sign), "conserving")(X)


class Kept(Net):
    """What a mask keeps is as long as the mask says, and its size is asked for."""

    def forward(self, x, edges):
        edges = edges[:, edges[0] != edges[1]]
        weight = torch.ones(edges.shape[1], dtype=x.dtype)
        messages = self.body(x)[edges[0]] * (weight / weight.max())[:, None]
        return self.head(torch.zeros(len(x), 6, dtype=x.dtype).index_add(0, edges[1], messages).relu())


def test_what_a_mask_keeps_is_known_for_the_mask():
    explainer = fxlrp.compile(made(Kept), "conserving", batch=None)
    for edges in ([[0, 1, 2], [1, 1, 0]], [[0, 1, 2, 2], [1, 2, 0, 2]], [[2, 1, 1], [0, 0, 0]]):
        explanation = explainer(X[0], torch.tensor(edges))
        torch.testing.assert_close(explanation.relevance[0].sum(), explanation.start.sum())


class Dims(Net):
    """Numbers of a constant tensor."""

    def forward(self, x):
        return self.head(self.body(x - x.mean(dim=torch.arange(1, x.dim()).tolist(), keepdim=True)).relu().mean(1))


class Sizes(Net):
    """How much of each item counts is read off a mask that is all ones."""

    def forward(self, x):
        counts = torch.ones(x.shape[:2]).sum(1).long()
        return torch.stack([self.head(self.body(x[item, :count]).mean(0)) for item, count in enumerate(counts)])


@pytest.mark.parametrize("kind", [Dims, Sizes])
def test_constants_answer_too(kind):
    checked(fxlrp.compile(made(kind), "conserving"), X)
