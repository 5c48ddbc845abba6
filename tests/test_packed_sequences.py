"""Packed sequences: items of several lengths, each explained as it is alone."""

import sys
import threading
import types

import pytest
import torch
from checks import assert_close, assert_explains
from test_gradients import GRADIENT, weights_of
from test_recurrent import DOUBLE, PRESETS
from torch import nn
from torch.nn.utils import rnn as rnn_utils
from torch.nn.utils.rnn import pack_padded_sequence as pack

import fxlrp
from fxlrp.errors import FxlrpError


class Packed(nn.Module):
    """A recurrent layer over sequences of several lengths, packed, or whole where ``lengths`` are those of all."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(4, 5, **options)
        directions, width = 2 if self.rnn.bidirectional else 1, self.rnn.proj_size or 5
        self.head, self.of_state = nn.Linear(width * directions, 3), nn.Linear(5 if kind is nn.LSTM else width, 3)

    def forward(self, x, lengths):
        first = self.rnn.batch_first
        x = x if first else x.transpose(0, 1)
        packed = rnn_utils.pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        output, state = self.rnn(packed)
        steps, lengths = rnn_utils.pad_packed_sequence(output, batch_first=first)
        last = state[1][-1] if isinstance(state, tuple) else state[-1]
        return self.head(steps.sum(1 if first else 0) / lengths[:, None]) + self.of_state(last)


class Whole(Packed):
    """The same for sequences that are as long as they look."""

    def forward(self, x):
        steps, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        last = state[1][-1] if isinstance(state, tuple) else state[-1]
        return self.head(steps.mean(1 if self.rnn.batch_first else 0)) + self.of_state(last)


LENGTHS = torch.tensor([3, 5, 1])


@pytest.mark.parametrize("options", [
    {"kind": nn.LSTM, "batch_first": True, "bidirectional": True, "proj_size": 3},
    {"kind": nn.GRU, "num_layers": 2, "bidirectional": True},
    {"kind": nn.RNN, "batch_first": True, "bias": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("preset", ["conserving", PRESETS[1]], ids=["conserving", "epsilon"])
def test_packed_sequences_are_explained_as_each_one_alone(options, preset):
    model = Packed(**options).double().eval()
    whole = Whole(**options).double().eval()
    whole.load_state_dict(model.state_dict())
    x = torch.randn(3, 5, 4, dtype=DOUBLE)
    if preset == "conserving":
        explainer, _ = assert_explains(model, x, LENGTHS)
    else:
        explainer = fxlrp.compile(model, preset)
    relevance, single = explainer(x, LENGTHS, target=1).by_input["x"], fxlrp.compile(whole, preset)
    for item, length in enumerate(LENGTHS.tolist()):
        wanted = single(x[item : item + 1, :length], target=1).relevance
        assert_close(relevance[item : item + 1, :length], wanted, limit=1e-8)
        assert not relevance[item, length:].any()


class Summing(nn.LSTM):
    """A layer that packs by itself, by a function that it imports when it is called."""

    def forward(self, x, lengths):
        from torch.nn.utils.rnn import pack_padded_sequence

        output, _ = super().forward(pack_padded_sequence(x, lengths.tolist(), True, False))
        return nn.utils.rnn.pad_packed_sequence(output, True, total_length=7)[0].sum(1)


class Spellings(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.gru = nn.Embedding(9, 4), Summing(4, 5, batch_first=True), nn.GRU(4, 5)
        self.drop, self.head, self.seen = nn.Dropout(0.5), nn.Linear(5, 3), []

    def forward(self, ids):
        thread = threading.Thread(target=lambda: self.seen.append(pack(torch.zeros(2, 3, 1), [3, 2], True)))
        thread.start()
        thread.join()
        lengths = (ids != 0).sum(1).cpu()
        packed = pack(ids, lengths, batch_first=True, enforce_sorted=False)
        packed = packed._replace(data=self.drop(self.embed(packed.data)))
        start = torch.tanh(self.lstm(self.embed(ids), lengths))
        return self.head(self.gru(packed, start[None])[1][0] + start)


def test_functions_that_pack_are_found_under_any_name_and_are_others_own_meanwhile():
    model = Spellings().double().eval()
    before = rnn_utils.pack_padded_sequence, rnn_utils.pad_packed_sequence, torch._subclasses.FakeTensor.tolist
    explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(torch.tensor([[6, 7, 8, 0, 0], [1, 2, 3, 4, 5], [4, 3, 0, 0, 0]]))
    assert not explanation.relevance[0, 3:].any()
    assert explainer.ledger(torch.tensor([[6, 7, 8, 0, 0]])).error.abs().max() < 1e-12
    assert all(isinstance(packed.batch_sizes, torch.Tensor) for packed in model.seen)
    after = rnn_utils.pack_padded_sequence, rnn_utils.pad_packed_sequence, torch._subclasses.FakeTensor.tolist
    assert after == before
    assert pack is before[0]


def test_an_output_as_long_as_the_longest_item_is_told_where_that_is_not_the_padded_length():
    class Mean(Packed):
        def forward(self, x, lengths):
            output, _ = self.rnn(pack(x, lengths, batch_first=True, enforce_sorted=False))
            return self.head(rnn_utils.pad_packed_sequence(output, batch_first=True)[0].mean(1))

    explainer = fxlrp.compile(Mean(nn.GRU, batch_first=True).eval(), "conserving")
    with pytest.raises(FxlrpError):
        explainer(torch.randn(3, 6, 4), LENGTHS)


@pytest.mark.slow
def test_a_saved_explanation_of_packed_sequences_needs_no_operation_of_ours(tmp_path):
    model, inputs = Packed(nn.RNN, batch_first=True).eval(), (torch.randn(2, 2, 4), torch.tensor([2, 1]))
    explainer = fxlrp.compile(model, "conserving")
    explainer(*inputs)
    saved = torch.export.load(explainer.save(tmp_path / "packed.pt2", inputs))
    assert not any("fxlrp" in str(node.target) for node in saved.graph.nodes)


def test_by_gradients_packed_sequences_get_those_of_the_model():
    model = Packed(nn.LSTM, batch_first=True, bidirectional=True).double().eval()
    x = torch.randn(3, 5, 4, dtype=DOUBLE, requires_grad=True)
    output = model(x, LENGTHS)
    explainer = fxlrp.compile(model, GRADIENT, start=lambda value, target: weights_of(value))
    wanted = torch.autograd.grad(output, x, weights_of(output))[0]
    assert_close(explainer(x.detach(), LENGTHS).by_input["x"], wanted)


def test_functions_may_be_imported_under_another_name_by_another_module(monkeypatch):
    helpers = types.ModuleType("helpers_of_a_model")
    exec(
        "from torch.nn.utils.rnn import pack_padded_sequence as fold, pad_packed_sequence as unfold\n"
        "def run(rnn, x, lengths):\n"
        "    packed = fold(x, lengths, batch_first=True, enforce_sorted=False)\n"
        "    return unfold(rnn(packed)[0], batch_first=True)[0]\n",
        vars(helpers),
    )
    monkeypatch.setitem(sys.modules, helpers.__name__, helpers)
    originals = helpers.fold, helpers.unfold

    class Helped(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x, lengths):
            return self.head(helpers.run(self.rnn, x, lengths).sum(1))

    assert_explains(Helped().double().eval(), torch.randn(3, 5, 4, dtype=DOUBLE), LENGTHS, absorbs=("bias", "constant"))
    assert (helpers.fold, helpers.unfold) == originals
