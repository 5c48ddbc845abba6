"""Recurrent layers: relevance goes step by step, as through the same steps written out."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_explains
from torch import nn

import fxlrp
from fxlrp.steps.recurrence import Recurrence

DOUBLE = torch.float64


class Recurrent(nn.Module):
    def __init__(self, final_states=False, kind=nn.LSTM, **options):
        super().__init__()
        self.final_states = final_states
        self.lstm = kind(4, 5, **{"batch_first": True, **options})
        directions, width = 2 if self.lstm.bidirectional else 1, self.lstm.proj_size or 5
        self.head = nn.Linear(width * directions, 3)
        self.of_h, self.of_c = nn.Linear(width, 3), nn.Linear(5, 3)

    def forward(self, x):
        steps, final = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        y = self.head((steps[:, 1:] if self.lstm.batch_first else steps.transpose(0, 1)[:, 1:]).mean(1))
        if not self.final_states:
            return y
        h, c = final if isinstance(final, tuple) else (final, None)
        return y + self.of_h(h[-1]) + (0 if c is None else self.of_c(c[0]))


FORMS = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
    "steps first": {"batch_first": False},
    "projected": {"proj_size": 3},
    "GRU": {"kind": nn.GRU, "num_layers": 2, "bidirectional": True},
    "GRU, steps first": {"kind": nn.GRU, "batch_first": False, "bias": False},
    "RNN": {"kind": nn.RNN, "num_layers": 2, "nonlinearity": "relu"},
    "RNN, both directions": {"kind": nn.RNN, "bidirectional": True, "batch_first": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_recurrent_layer_conserves(form):
    model = Recurrent(True, **FORMS[form]).double().eval()
    explainer, ledger = assert_explains(model, torch.randn(3, 6, 4, dtype=DOUBLE))
    assert explainer.capture == "symbolic"
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


# Oracles: the rule itself, without a model around it ---------------------------------------------


def chord(f, z):
    """``f(z)`` by a constant slope: what ε with no ε to speak of makes of an activation."""
    return z * (f(z) / z).detach()


def gate(z):
    return torch.sigmoid(z).detach()


def held_lstm(x, h, c, w, u, b, d, projection=None):
    i, f, g, o = (x @ w.T + h @ u.T + b + d).chunk(4, dim=1)
    c = gate(f) * c + gate(i) * chord(torch.tanh, g)
    h = gate(o) * chord(torch.tanh, c)
    return h if projection is None else h @ projection.T, c


def held_gru(x, h, w, u, b, d):
    (r, z, n), (r_h, z_h, n_h) = (x @ w.T + b).chunk(3, dim=1), (h @ u.T + d).chunk(3, dim=1)
    z = gate(z + z_h)
    return ((1 - z) * chord(torch.tanh, n + gate(r + r_h) * n_h) + z * h,)


def held_rnn(x, h, w, u, b, d):
    return (chord(torch.tanh, x @ w.T + h @ u.T + b + d),)


HELD = {"lstm": (nn.LSTM, held_lstm), "gru": (nn.GRU, held_gru), "rnn_tanh": (nn.RNN, held_rnn)}


def call_of(cell, layer, x, states):
    form = (layer.bias, layer.num_layers, layer.bidirectional, layer.batch_first)
    return Recurrence(cell, x, states, [weight.detach() for weight in layer._flat_weights], *form)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", [*HELD, "lstm, projected"])
def test_by_epsilon_it_is_gradient_times_input_with_gates_held(cell, options):
    options = {**options, "proj_size": 3} if "projected" in cell else options
    kind, step = HELD[cell.split(",")[0]]
    layer = kind(4, 5, batch_first=True, **options).double()
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.proj_size or 5, 5] if kind is nn.LSTM else [5]
    x = torch.randn(2, 3, 4, dtype=DOUBLE, requires_grad=True)
    states = [torch.randn(places, 2, width, dtype=DOUBLE, requires_grad=True) for width in widths]

    inputs, final = list(x.unbind(1)), []
    for at in range(places):
        own = list(layer.all_weights[at])
        weights = own if layer.bias else [*own[:2], 0.0, 0.0, *own[2:]]
        now, outputs, backwards = [state[at] for state in states], [], layer.bidirectional and at % 2
        for value in reversed(inputs) if backwards else inputs:
            now = step(value, *now, *weights)
            outputs.append(now[0])
        final.append(now)
        outputs = outputs[::-1] if backwards else outputs
        before = [*before, outputs] if layer.bidirectional and at % 2 else [outputs]  # noqa: F821
        if not layer.bidirectional or at % 2:
            inputs = [torch.cat(parts, dim=1) for parts in zip(*before, strict=True)]
    results = [torch.stack(inputs, dim=1), *(torch.stack(values) for values in zip(*final, strict=True))]
    given = tuple(states) if kind is nn.LSTM else states[0]
    assert_close(results[0].detach(), layer(x, given)[0].detach())

    pulls = [torch.randn_like(result) for result in results]
    wanted = torch.autograd.grad(sum((r * p).sum() for r, p in zip(results, pulls, strict=True)), [x, *states])
    relevance = [(i, (r * p).detach()) for i, (r, p) in enumerate(zip(results, pulls, strict=True))]
    call = call_of(cell.split(",")[0], layer, x.detach(), [state.detach() for state in states])
    shares = fxlrp.rules.Recurrent(EPSILON, SIGNED)(relevance, call, [True] * (1 + len(states)))
    for share, value, slope in zip(shares.operands, [x, *states], wanted, strict=True):
        assert_close(share, (value * slope).detach(), limit=1e-8)


SPLITS = {"ratio": fxlrp.rules.RatioSplit(), "residual": fxlrp.rules.ResidualOnly(), "skip": fxlrp.rules.SkipOnly()}


def zplus(x, w, r):
    parts = (x[:, None] * w).clamp(min=0)
    return (parts / parts.sum(2, keepdim=True) * r[:, :, None]).sum(1)


def test_a_gru_splits_by_magnitude_and_goes_on_by_positive_parts():
    layer = nn.GRU(24, 24, batch_first=True).double()  # so wide that no sum of positive parts vanishes
    x, state = torch.randn(2, 3, 24, dtype=DOUBLE), torch.randn(1, 2, 24, dtype=DOUBLE)
    w, u, b, d = (weight.detach() for weight in layer.all_weights[0])
    h, steps = state[0], []
    for t in range(3):
        (r, z, n), (r_h, z_h, n_h) = (x[:, t] @ w.T + b).chunk(3, 1), (h @ u.T + d).chunk(3, 1)
        reset, z = torch.sigmoid(r + r_h) * n_h, torch.sigmoid(z + z_h)
        steps.append((h, z * h, (1 - z) * torch.tanh(n + reset), reset, n))
        h = steps[-1][1] + steps[-1][2]
    to_h = start = torch.rand(2, 24, dtype=DOUBLE)
    wanted = []
    for t in reversed(range(3)):
        h, kept, added, reset, n = steps[t]
        to_kept = to_h * kept.abs() / (kept.abs() + added.abs())
        to_reset = (to_h - to_kept) * reset.abs() / (reset.abs() + n.abs())
        wanted.insert(0, zplus(x[:, t], w.chunk(3)[2], to_h - to_kept - to_reset))
        to_h = to_kept + zplus(h, u.chunk(3)[2], to_reset)
    shares = fxlrp.rules.Recurrent()([(1, start[None])], call_of("gru", layer, x, [state]), [True, True])
    assert_close(shares.operands[0], torch.stack(wanted, dim=1))
    assert_close(shares.operands[1], to_h[None])


@pytest.mark.parametrize("linear", [fxlrp.rules.ZPlus(), EPSILON, fxlrp.rules.Epsilon(1e-9, bias="share")], ids=repr)
@pytest.mark.parametrize("split", ["ratio", "residual", "skip"])
@pytest.mark.parametrize("cell", HELD)
def test_nothing_is_lost_at_starts_from_zero(cell, split, linear):
    layer = HELD[cell][0](4, 5, batch_first=True).double()
    x, states = torch.randn(2, 3, 4, dtype=DOUBLE), [torch.zeros(1, 2, 5, dtype=DOUBLE)] * (1 + (cell == "lstm"))
    states[0] = states[0] + torch.tensor([0.0, 0.5], dtype=DOUBLE)[:, None]  # one item starts from zero, the other not
    relevance = torch.rand(2, 3, 5, dtype=DOUBLE)
    shares = fxlrp.rules.Recurrent(linear, SPLITS[split])([(0, relevance)], call_of(cell, layer, x, states))
    kept = sum(amount() for amount in shares.absorbed.values())
    assert_close(shares.only.sum((1, 2)) + kept, relevance.sum((1, 2)))


# States that carry signal, and cells -------------------------------------------------------------


class Decoder(nn.Module):
    """What starts from a summary of the input: an LSTM over it, and a GRU over nothing else."""

    def __init__(self):
        super().__init__()
        self.summary, self.lstm, self.gru = nn.Linear(4, 5), nn.LSTM(4, 5), nn.GRU(4, 5, 2, batch_first=True)
        self.head, self.query = nn.Linear(5, 3), nn.Parameter(torch.randn(1, 3, 4))

    def forward(self, x):
        h = torch.relu(self.summary(x.mean(1)))[None]
        steps, _ = self.lstm(x.transpose(0, 1), (h, torch.zeros_like(h)))
        _, last = self.gru(self.query.expand(x.shape[0], -1, -1), torch.cat([h, 2 * h]))
        return self.head(steps.mean(0) + last[-1])


def test_states_that_carry_signal_receive():
    model = Decoder().double().eval()
    _, ledger = assert_explains(model, torch.randn(3, 4, 4, dtype=DOUBLE), absorbs=("constant",))
    assert ledger.absorbed["constant"].abs().max() > 0  # what goes to the query, which is a parameter
    assert all(any("gru" not in to and "lstm" not in to for to in row.to) for row in ledger if row.kind == "recurrent")


class Captions(nn.Module):
    """States that begin with what is looked up, and an axis for the layers put in front by its size."""

    def __init__(self):
        super().__init__()
        self.kinds, self.start = nn.Embedding(5, 4), nn.Linear(4, 6)
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, kind, x):
        state = self.start(self.kinds(kind)).expand(1, -1, -1)
        return self.head(self.lstm(x, (state, state))[0][:, -1])


def test_looked_up_states_are_of_the_item_that_they_are_looked_up_for():
    explainer = fxlrp.compile(Captions().double().eval(), "conserving")
    ledger = explainer.ledger(torch.tensor([0, 3, 1]), torch.randn(3, 5, 4, dtype=DOUBLE))
    assert ledger.error.abs().max() < 1e-9 * ledger.start.abs().max()


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = (kind(4, 5, batch_first=True) for kind in (nn.LSTM, nn.GRU, nn.RNN))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0] + self.gru(x)[0] + self.rnn(x)[0]).sum(1)


class Cells(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)
        self.head = layers.head
        for name in ("lstm", "gru", "rnn"):
            weights = getattr(layers, name).state_dict()
            getattr(self, name).load_state_dict({key.removesuffix("_l0"): value for key, value in weights.items()})

    def forward(self, x):
        lstm = gru = rnn = None
        outputs = []
        for t in range(x.shape[1]):  # which only torch.export follows
            lstm, gru, rnn = self.lstm(x[:, t], lstm), self.gru(x[:, t], gru), self.rnn(x[:, t], rnn)
            outputs.append(lstm[0] + gru + rnn)
        return self.head(torch.stack(outputs, dim=1)).sum(1)


def test_a_layer_is_its_cells():
    layers = Layers().double().eval()
    cells, x = Cells(layers).double().eval(), torch.randn(2, 4, 4, dtype=DOUBLE)
    assert_close(cells(x).detach(), layers(x).detach())
    for preset in ("conserving", "attnlrp"):
        assert_close(fxlrp.compile(cells, preset)(x).relevance, fxlrp.compile(layers, preset)(x).relevance, limit=1e-8)


def test_a_program_does_not_grow_with_steps():
    model = Layers().eval()
    sizes = set()
    for length in (20, 80, 160):
        explainer = fxlrp.compile(model, "conserving", example_inputs=torch.randn(2, length, 4))
        sizes.add(explainer.code.count("\n"))
    assert len(sizes) == 1
