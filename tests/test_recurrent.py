"""Recurrent layers: relevance goes step by step, as through the same steps written out."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_explains
from torch import nn

import fxlrp
from fxlrp.errors import UnknownOperationError

DOUBLE = torch.float64


class Recurrent(nn.Module):
    def __init__(self, final_states=False, **options):
        super().__init__()
        self.final_states = final_states
        self.lstm = nn.LSTM(4, 5, **{"batch_first": True, **options})
        directions = 2 if self.lstm.bidirectional else 1
        self.head, self.of_h, self.of_c = nn.Linear(5 * directions, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        steps, (h, c) = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        y = self.head((steps[:, 1:] if self.lstm.batch_first else steps.transpose(0, 1)[:, 1:]).mean(1))
        return y + self.of_h(h[-1]) + self.of_c(c[0]) if self.final_states else y


FORMS = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "two layers": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
    "steps first": {"batch_first": False},
}


@pytest.mark.parametrize("final_states", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_lstm_conserves(form, final_states):
    model = Recurrent(final_states, **FORMS[form]).double().eval()
    explainer, ledger = assert_explains(model, torch.randn(3, 6, 4, dtype=DOUBLE))
    assert explainer.capture == "export"
    assert "recurrent" in {row.kind for row in ledger}


class WrittenOut(nn.Module):
    """The steps of :class:`Recurrent`, one direction, from nothing but small operations."""

    def __init__(self, model):
        super().__init__()
        self.lstm, self.head = model.lstm, model.head

    def forward(self, x):
        lstm, h, c, outputs = self.lstm, None, None, []
        weights = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], dim=1).chunk(4)
        biases = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
        for t in range(6):
            both = x[:, t] if h is None else torch.cat([x[:, t], h], dim=1)
            width = both.shape[1]
            i, f, g, o = (F.linear(both, w[:, :width], b) for w, b in zip(weights, biases, strict=True))
            added = torch.sigmoid(i) * torch.tanh(g)
            c = added if c is None else torch.sigmoid(f) * c + added
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return self.head(torch.stack(outputs, dim=1)[:, 1:].mean(1))


EPSILON, SIGNED = fxlrp.rules.Epsilon(1e-12, bias="absorb"), fxlrp.rules.SignedSplit(1e-12)
PRESETS = [
    fxlrp.Preset("z+"),
    fxlrp.Preset("epsilon", linear=EPSILON, split=SIGNED, recurrent=fxlrp.rules.Recurrent(EPSILON, SIGNED)),
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_it_is_what_its_steps_written_out_are(preset):
    model = Recurrent().double().eval()
    written, x = WrittenOut(model).double().eval(), torch.randn(2, 6, 4, dtype=DOUBLE)
    assert_close(written(x).detach(), model(x).detach())
    whole, by_steps = fxlrp.compile(model, preset), fxlrp.compile(written, preset)
    assert_close(whole(x).relevance, by_steps(x).relevance, limit=1e-8)


def test_an_lstm_with_projections_is_refused():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 5, proj_size=3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    with pytest.raises(UnknownOperationError, match="an LSTM with projections"):
        fxlrp.compile(Projected().eval(), "conserving")(torch.randn(2, 3, 4))
