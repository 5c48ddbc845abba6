"""``batch=1``: inputs whose second axis tells the items apart."""

import pytest
import torch
from checks import assert_explains
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, InputError


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, src, mask=None):
        return self.head(self.encoder(src, src_key_padding_mask=mask).mean(0))


class Tagger(nn.Module):
    """A class for each token: (tokens, batch, classes)."""

    def __init__(self):
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 8, bidirectional=True), nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.lstm(self.table(ids))[0])


def made(kind):
    torch.manual_seed(0)
    return kind().double().eval()


SEQUENCE = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("preset", ["conserving", "evidence", "attnlrp"])
def test_items_are_explained_as_if_alone(preset):
    explainer = fxlrp.compile(made(Encoder), preset, batch=1)
    explanation = explainer(SEQUENCE)
    assert explanation.relevance.shape == SEQUENCE.shape
    assert explanation.start.shape == (4,)
    for item in range(4):
        alone = explainer(SEQUENCE[:, item : item + 1])
        torch.testing.assert_close(alone.relevance[:, 0], explanation.relevance[:, item])
    ledger = explainer.ledger(SEQUENCE)
    torch.testing.assert_close(ledger.relevance, explanation.relevance.sum((0, 2)))
    assert float(ledger.error.abs().max()) < 1e-9


def test_the_same_as_with_the_batch_in_front():
    class Moved(Encoder):
        def forward(self, src):
            return super().forward(src.transpose(0, 1))

    torch.manual_seed(0)
    moved = fxlrp.compile(made(Moved), "conserving")(SEQUENCE.transpose(0, 1))
    first = fxlrp.compile(made(Encoder), "conserving", batch=1)(SEQUENCE)
    torch.testing.assert_close(first.relevance.transpose(0, 1), moved.relevance)


def test_the_axis_may_be_given_by_name():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 3:] = True
    explainer = fxlrp.compile(made(Encoder), "conserving", batch={"src": 1})
    relevance = explainer(SEQUENCE, mask).by_input["src"]
    for item in range(4):
        alone = explainer(SEQUENCE[:, item : item + 1], mask[item : item + 1])
        torch.testing.assert_close(alone.by_input["src"][:, 0], relevance[:, item])


def test_outputs_may_have_the_batch_there_too():
    explainer = fxlrp.compile(made(Tagger), "conserving", batch=1, start=lambda output, target: output)
    ids = torch.randint(0, 20, (6, 4), generator=torch.Generator().manual_seed(0))
    explanation = explainer(ids)
    assert explanation.relevance.shape == (6, 4, 6)
    torch.testing.assert_close(explanation.start, explanation.output.sum((0, 2)))
    torch.testing.assert_close(explanation.relevance.sum((0, 2)), explanation.start)
    last = fxlrp.compile(made(Tagger), "conserving", batch=1, output=lambda output: output[-1])(ids, target=[0, 1])
    assert last.relevance.shape == (6, 4, 2, 6)
    torch.testing.assert_close(last.relevance.sum((0, 3)), last.start)


def test_data_has_a_row_for_each_item():
    pytest.importorskip("polars")
    explanation = fxlrp.compile(made(Encoder), "conserving", batch=1)(SEQUENCE, target=[0, 2])
    frame = explanation.to_frame()
    assert len(frame) == 8
    torch.testing.assert_close(torch.tensor(frame["sum"].to_list()), explanation.start.flatten(), check_dtype=False)
    assert tuple(explanation.by_item.relevance.shape) == (4, 2, 5, 8)


def test_errors_say_which_axis():
    with pytest.raises(InputError, match="batch= names 'source', and the inputs are src"):
        fxlrp.compile(made(Encoder), "conserving", batch={"source": 1})(SEQUENCE)
    with pytest.raises(CaptureError, match="its first axis must be the batch"):
        fxlrp.compile(made(Encoder), "conserving")(SEQUENCE)
    with pytest.raises(InputError, match=r"the second axis of every tensor must be the batch, 4 here"):
        fxlrp.compile(made(Encoder), "conserving", batch=1)(SEQUENCE, torch.zeros(4, 5, dtype=torch.bool))


AXES = {
    "a product from the left": lambda h, w: (w @ h.mT).relu().mT,
    "a transpose": lambda h, w: (w @ h.transpose(-1, -2)).softmax(0).transpose(-2, -1),
    "a new axis": lambda h, w: (h.unsqueeze(-3) * w[:, None]).relu().permute(1, 0, 2).flatten(1),
    "a stack": lambda h, w: torch.stack([h, h.relu()], -3).transpose(0, 1).flatten(1),
    "distances": lambda h, w: torch.cdist(w, h).T,
    "a mean beside what it is of": lambda h, w: distances_by_their_mean(torch.cdist(w, h)).T,
    "a condition of more axes": lambda h, w: torch.where(w[:2, None] > 0, h, h.tanh()).transpose(0, 1).flatten(1),
}


def distances_by_their_mean(table):
    return table.mean(0).tanh() * table + table


@pytest.mark.parametrize("opened", [False, True], ids=["symbolic", "export"])
@pytest.mark.parametrize("name", AXES)
def test_the_batch_is_found_by_axes_counted_from_the_end(name, opened):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.LazyLinear(3)
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            if opened and x.shape[1] < 1:  # symbolic tracing cannot follow it
                raise ValueError
            return self.last(AXES[name](self.first(x), self.weight))

    model, x = made(Counted), torch.randn(3, 6, dtype=torch.float64)
    model(x)
    assert_explains(model, x, absorbs=("bias",))
