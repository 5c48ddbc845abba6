"""Loops over recurrent cells: a program is as large for many steps as for few, and relevance is that of the steps."""

import pytest
import torch
from checks import assert_close, assert_explains
from torch import nn

import fxlrp
from fxlrp.passes.reroll import RerollLoops

DOUBLE = torch.float64
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def hidden(state):
    return state[0] if isinstance(state, tuple) else state


class Loop(nn.Module):
    """A cell over the steps of a sequence, in one of several spellings."""

    kind = nn.GRUCell

    def __init__(self, kind=None):
        super().__init__()
        self.cell, self.head = (kind or self.kind)(4, 5), nn.Linear(5, 3)

    def begin(self, x, like=None):
        h = x.new_zeros(x.shape[0], 5) if like is None else like
        return (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTMCell) else h

    def over(self, steps, state):
        outputs = []
        for step in steps:
            state = self.cell(step, state)
            outputs.append(hidden(state))
        return outputs

    def forward(self, x):
        outputs = self.over([x[:, t] for t in range(x.shape[1])], self.begin(x))
        return self.head(torch.stack(outputs, dim=1)).mean(1)


class Last(Loop):
    def forward(self, x):
        return self.head(self.over([x[:, t] for t in range(x.shape[1])], self.begin(x))[-1])


class LastMemory(Loop):
    kind = nn.LSTMCell

    def forward(self, x):
        h, c = self.begin(x)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h) + self.head(c)


class Unbound(Loop):
    def forward(self, x):
        return self.head(torch.stack(self.over(x.unbind(1), self.begin(x)))).mean(0)


class Split(Loop):
    def forward(self, x):
        steps = [step.squeeze(1) for step in x.split(1, dim=1)]
        return self.head(torch.cat([h.unsqueeze(1) for h in self.over(steps, self.begin(x))], dim=1)).mean(1)


class StepsFirst(Loop):
    def forward(self, x):
        x = x.transpose(0, 1)
        return self.head(torch.stack(self.over([x[t] for t in range(len(x))], self.begin(x[0])))).mean(0)


class TransposedAnew(Loop):
    def forward(self, x):
        steps = [x.transpose(0, 1)[t] for t in range(x.shape[1])]
        return self.head(torch.stack(self.over(steps, self.begin(x)), dim=1)).mean(1)


class Series(Loop):
    """Channels before steps, as convolutions have them."""

    def forward(self, x):
        x = x.transpose(1, 2)
        return self.head(torch.stack(self.over([x[:, :, t] for t in range(x.shape[2])], self.begin(x)), 1)).mean(1)


class Backwards(Loop):
    def forward(self, x):
        outputs = self.over([x[:, t] for t in reversed(range(x.shape[1]))], self.begin(x))
        return self.head(torch.stack(outputs[::-1], dim=1) * torch.arange(x.shape[1])[:, None]).mean(1)


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = Loop(nn.LSTMCell), Loop(nn.LSTMCell)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        steps = [x[:, t] for t in range(x.shape[1])]
        there = self.there.over(steps, self.there.begin(x))
        back = self.back.over(steps[::-1], self.back.begin(x))[::-1]
        return self.head(torch.cat([torch.stack(there, 1), torch.stack(back, 1)], dim=-1)).mean(1)


class BothWaysByStep(BothWays):
    def forward(self, x):
        there = self.there.over(x.unbind(1), self.there.begin(x))
        back = self.back.over(x.unbind(1)[::-1], self.back.begin(x))[::-1]
        return self.head(torch.stack([torch.cat(pair, dim=-1) for pair in zip(there, back, strict=True)])).mean(0)


class EverySecond(Loop):
    def forward(self, x):
        outputs = self.over([x[:, t] for t in range(x.shape[1] % 2, x.shape[1], 2)], self.begin(x))
        return self.head(torch.stack(outputs, dim=1)).mean(1)


class Viewed(Loop):
    def forward(self, x):
        steps = [step.reshape(len(x), -1) for step in x.split(1, dim=1)]
        return self.head(torch.cat(self.over(steps, self.begin(x)), dim=1).view(len(x), -1, 5)).mean(1)


class TwoLayers(nn.Module):
    def __init__(self, kind=nn.GRUCell):
        super().__init__()
        self.c1, self.c2, self.head = kind(4, 5), kind(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h1 = h2 = None
        for t in range(x.shape[1]):
            h1 = self.c1(x[:, t], h1)
            h2 = self.c2(hidden(h1), h2)
        return self.head(hidden(h2))


class FromContext(Loop):
    """A decoder that sees one value at every step, and starts from the state of an encoder."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.encoder = nn.Linear(4, 5)

    def forward(self, x):
        start = torch.tanh(self.encoder(x.mean(1)))
        return self.head(torch.stack(self.over([x[:, 0]] * x.shape[1], self.begin(x, start)), dim=1)).mean(1)


class Query(Loop):
    """A decoder that sees a parameter at every step."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.encoder, self.query = nn.Linear(4, 5), nn.Parameter(torch.randn(4))

    def forward(self, x):
        start = torch.relu(self.encoder(x.mean(1)))
        steps = [self.query.expand(len(x), -1)] * x.shape[1]
        return self.head(torch.stack(self.over(steps, self.begin(x, start)), dim=1)).mean(1)


class Sequences(nn.Module):
    """Recurrent layers that are called for one step at a time."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.layer, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        state, outputs = None, []
        for t in range(x.shape[1]):
            output, state = self.layer(x[:, t : t + 1], state)
            outputs.append(output)
        return self.head(torch.cat(outputs, dim=1)).mean(1)


SIMPLE = {
    **{f"{name}": (lambda kind=kind: Loop(kind)) for name, kind in CELLS.items()},
    **{f"last {name}": (lambda kind=kind: Last(kind)) for name, kind in CELLS.items()},
    **{each.__name__: each for each in (
        LastMemory, Unbound, Split, StepsFirst, TransposedAnew, Series, Backwards, BothWays, BothWaysByStep,
        EverySecond, Viewed, TwoLayers, FromContext, Query, Sequences,
    )},
    "context, lstm": lambda: FromContext(nn.LSTMCell),
    "two layers, lstm": lambda: TwoLayers(nn.LSTMCell),
    "gru of one step": lambda: Sequences(nn.GRU),
}  # fmt: skip


@pytest.mark.parametrize("form", SIMPLE)
def test_a_program_does_not_grow_with_steps(form):
    model, sizes = SIMPLE[form]().eval(), set()
    for length in (5, 9):
        explainer = fxlrp.compile(model, "conserving", example_inputs=torch.randn(2, length, 4))
        sizes.add((len(explainer.graph.nodes), len(explainer.model_graph.nodes)))
    assert len(sizes) == 1


# Forms of which parts alone are joined, or none ----------------------------------------------------


class LayerOfSteps(Loop):
    """What a step sees is computed for it alone."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.embed = nn.Linear(4, 4)

    def forward(self, x):
        steps = [torch.relu(self.embed(x[:, t])) for t in range(x.shape[1])]
        return self.head(torch.stack(self.over(steps, self.begin(x)), dim=1)).mean(1)


class LayerAnew(LayerOfSteps):
    """A layer of all steps, computed once more for each."""

    def forward(self, x):
        steps = [self.embed(x)[:, t] for t in range(x.shape[1])]
        return self.head(torch.stack(self.over(steps, self.begin(x)), dim=1)).mean(1)


class OwnOutput(Loop):
    """A step sees what the step before it said."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.say = nn.Linear(5, 4)

    def forward(self, x):
        state, seen = self.begin(x), x[:, 0]
        for _ in range(x.shape[1]):
            state = self.cell(seen, state)
            seen = self.say(hidden(state))
        return self.head(hidden(state))


class OwnOutputOnce(OwnOutput):
    def forward(self, x):
        state = self.begin(x)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t] if t != 3 else self.say(hidden(state)), state)
        return self.head(hidden(state))


class MemoryRead(Loop):
    """The memory of a step in between is used."""

    kind = nn.LSTMCell

    def forward(self, x):
        state = self.begin(x)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            if t == 2:
                middle = state[1]
        return self.head(state[0]) + self.head(middle)


class StartToken(Loop):
    """The first step sees a parameter."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.token = nn.Parameter(torch.randn(4))

    def forward(self, x):
        steps = [self.token.expand(len(x), -1), *(x[:, t] for t in range(x.shape[1] - 1))]
        return self.head(torch.stack(self.over(steps, self.begin(x)), dim=1)).mean(1)


class PartsOfSteps(Loop):
    """Some steps, and sums of outputs step by step."""

    def forward(self, x):
        outputs = self.over([x[:, t] for t in range(1, x.shape[1] - 1)], self.begin(x, x[:, 0, :1].expand(-1, 5)))
        joined = [x[:, t, :1] + h for t, h in enumerate(outputs, 1)]
        return self.head(torch.stack(joined, dim=1)).mean(1) + self.head(torch.stack(outputs[1:], 1)).mean(1)


class Branches(Loop):
    """Two ways to go on from one state, by one cell."""

    def forward(self, x):
        middle = state = self.begin(x)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            middle = state if t == 1 else middle
        other = middle
        for t in range(x.shape[1]):
            other = self.cell(x[:, -1 - t], other)
        return self.head(hidden(state) + hidden(other))


class Crossed(nn.Module):
    """Each of two cells sees, later on, what the other one said before."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.GRUCell(5, 5), nn.GRUCell(5, 5), nn.Linear(10, 3)
        self.embed = nn.Linear(4, 5)

    def forward(self, x):
        steps = [self.embed(x[:, t]) for t in range(4)]
        a = b = x.new_zeros(len(x), 5)
        a = self.a(steps[0], a)
        b = self.b(steps[1], b)
        first_a, first_b = a, b
        for _ in range(2):
            a, b = self.a(first_b, a), self.b(first_a, b)
        return self.head(torch.cat([a, b], dim=1))


class Residual(TwoLayers):
    """A skip around a cell at each step."""

    def forward(self, x):
        h1 = h2 = None
        outputs = []
        for t in range(x.shape[1]):
            h1 = self.c1(x[:, t], h1)
            h2 = self.c2(hidden(h1), h2)
            outputs.append(hidden(h1) + hidden(h2))
        return self.head(torch.stack(outputs, dim=1)).mean(1)


class OfPictures(Loop):
    """A cell over the columns that a convolution sees, and a hidden layer on what it says at each."""

    def __init__(self, kind=None):
        super().__init__(kind)
        self.conv, self.hidden = nn.Conv2d(1, 4, 2), nn.Linear(5, 5)

    def forward(self, x):
        x = self.conv(x[:, None]).mean(2)
        outputs = torch.stack(self.over([x[:, :, t] for t in range(x.shape[2])], self.begin(x)), dim=1)
        return self.head(torch.relu(self.hidden(outputs))).mean(1)


PARTLY = {each.__name__: each for each in (
    LayerOfSteps, LayerAnew, OwnOutput, OwnOutputOnce, MemoryRead, StartToken, PartsOfSteps, Branches, Crossed,
    Residual, OfPictures,
)}  # fmt: skip
ALL = {**SIMPLE, **PARTLY, "branches, lstm": lambda: Branches(nn.LSTMCell)}


@pytest.fixture
def step_by_step(monkeypatch):
    """Explains a model with every step of its loops by itself."""

    def explain(model, preset, *inputs):
        with monkeypatch.context() as patch:
            patch.setattr(RerollLoops, "run", lambda self, module: module)
            explainer = fxlrp.compile(model, preset)
            return explainer(*inputs), explainer.ledger(*inputs)

    return explain


@pytest.mark.parametrize("form", ALL)
def test_relevance_is_that_of_the_steps(form, step_by_step):
    torch.manual_seed(3)
    model, x = ALL[form]().double().eval(), torch.randn(3, 6, 4, dtype=DOUBLE)
    for preset in ("conserving", "attnlrp", "evidence"):
        explainer = fxlrp.compile(model, preset)
        found, ledger = explainer(x), explainer.ledger(x)
        wanted, by_step = step_by_step(model, preset, x)
        assert_close(found.relevance, wanted.relevance, limit=1e-10)
        scale = ledger.start.abs().max()
        assert ledger.error.abs().max() <= 1e-10 * scale
        assert {reason for row in ledger for reason in row.by_reason} == {
            reason for row in by_step for reason in row.by_reason
        }
        for reason, amount in by_step.absorbed.items():
            assert (ledger.absorbed[reason] - amount).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("form", ["lstm", "TwoLayers", "BothWays", "OwnOutputOnce", "Residual", "Backwards"])
def test_nothing_is_lost_and_items_stay_apart(form):
    assert_explains(ALL[form]().double().eval(), torch.randn(3, 5, 4, dtype=DOUBLE))


def recurrences(explainer):
    return [node for node in explainer.summary() if node.kind == "recurrent"]


@pytest.mark.parametrize(("form", "many"), [
    ("OwnOutput", 6), ("OwnOutputOnce", 2), ("MemoryRead", 2), ("StartToken", 1), ("Branches", 2), ("lstm", 1),
    ("LayerOfSteps", 1), ("TwoLayers", 2), ("Residual", 2), ("BothWays", 2),
])  # fmt: skip
def test_steps_that_depend_on_steps_before_them_stay_apart(form, many):
    explainer = fxlrp.compile(ALL[form]().eval(), "conserving", example_inputs=torch.randn(2, 6, 4))
    assert len(recurrences(explainer)) == many


# What a caller sees of a loop ----------------------------------------------------------------------


class Fixed(Loop):
    """Four steps, however long the sequence is: symbolic tracing follows it."""

    def forward(self, x):
        return self.head(torch.stack(self.over([x[:, t] for t in range(4)], self.begin(x)), dim=1)).mean(1)


def test_a_loop_over_some_steps_alone_takes_no_shorter_sequence(step_by_step):
    model = Fixed().double().eval()
    explainer = fxlrp.compile(model, "conserving")
    assert explainer.capture == "symbolic"
    for length in (4, 7):
        x = torch.randn(2, length, 4, dtype=DOUBLE)
        assert_close(explainer(x).relevance, step_by_step(model, "conserving", x)[0].relevance, limit=1e-10)
        assert len(recurrences(explainer)) == 1
    with pytest.raises(fxlrp.errors.InputError, match="at 'cell'"):
        explainer(torch.randn(2, 3, 4, dtype=DOUBLE))


def test_another_length_is_read_anew_and_explained_alike():
    layer, model = nn.GRU(4, 5, batch_first=True).double().eval(), Loop().double().eval()
    model.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})

    class OfLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, model.head

        def forward(self, x):
            return self.head(self.layer(x)[0]).mean(1)

    explainer, whole = fxlrp.compile(model, "conserving"), fxlrp.compile(OfLayer().eval(), "conserving")
    x = torch.randn(2, 6, 4, dtype=DOUBLE)
    assert_close(explainer(x).relevance, whole(x).relevance, limit=1e-10)
    with pytest.warns(UserWarning, match="captured anew"):
        assert_close(explainer(x[:, :4]).relevance, whole(x[:, :4]).relevance, limit=1e-10)


def test_steps_are_not_taken_for_items():
    class OfFirst(Loop):
        def forward(self, x):
            return self.head(torch.stack(self.over([x[t] for t in range(4)], self.begin(x[0])))).mean(0)

    model, x = OfFirst().double().eval(), torch.randn(4, 3, 4, dtype=DOUBLE)
    with pytest.raises(fxlrp.errors.CaptureError, match="picks one item of the batch"):
        fxlrp.compile(model, "conserving", batch=0)(x)
    explainer = fxlrp.compile(model, "conserving", batch=1)
    assert len(recurrences(explainer)) == 1
    together = explainer(x).relevance
    alone = [explainer(x[:, i : i + 1]).relevance for i in range(3)]
    assert_close(together, torch.cat(alone, dim=1))


def test_what_is_named_inside_a_loop_is_told_of_the_loop_as_it_is_written(monkeypatch):
    model, x = Last().double().eval(), torch.randn(2, 5, 4, dtype=DOUBLE)

    def compiled(module):
        return fxlrp.compile(model, "conserving", checkpoints=(module,), example_inputs=x)

    rerolled, checked = compiled("head"), compiled("cell")
    with monkeypatch.context() as patch:
        patch.setattr(RerollLoops, "run", lambda self, module: module)
        written, written_checked = compiled("head"), compiled("cell")
    assert (len(recurrences(rerolled)), len(recurrences(written))) == (1, 5)

    for name in ("x", "select_1", "cell_4", "cell_9", "head"):
        found, wanted = (each.relevance_of(x, nodes=[name])[name] for each in (rerolled, written))
        assert_close(found, wanted, limit=1e-10)
    for conditions in ({"cell": [1, 3]}, [{"cell": [1, 3]}, {"cell": torch.rand(5)}]):
        found, wanted = (each(x, conditions=conditions).relevance for each in (rerolled, written))
        assert_close(found, wanted, limit=1e-10)
    assert_close(rerolled(x).checkpoints["head"], written(x).checkpoints["head"], limit=1e-10)
    steps, wanted = checked(x).checkpoints["cell"], written_checked(x).checkpoints["cell"]
    assert len(steps) == len(wanted) == 5
    for step, one in zip(steps, wanted, strict=True):
        assert_close(step, one, limit=1e-10)
    assert {row.path for row in rerolled.ledger(x) if row.kind == "recurrent"} == {"cell"}


def test_a_rule_for_one_step_stays_that_of_one_step():
    model, x = Loop().eval(), torch.randn(2, 6, 4)
    rules = {"cell_12": fxlrp.rules.Recurrent(fxlrp.rules.Epsilon(1e-6))}
    explainer = fxlrp.compile(model, "conserving", rules=rules, example_inputs=x)
    assert [row.rule for row in recurrences(explainer)] == [
        "Recurrent()", "Recurrent(linear=Epsilon(1e-06))", "Recurrent()",
    ]  # fmt: skip


def test_forks_are_nodes_of_the_graph():
    explainer = fxlrp.compile(Residual().eval(), "conserving", example_inputs=torch.randn(2, 4, 4))
    nodes = {node.name for node in explainer.model_graph.nodes}
    assert {join.kind for join in explainer.joins} == {"identity"}
    assert all({join.fork, join.skip, join.residual} <= nodes for join in explainer.joins)


@pytest.mark.parametrize("form", ["Backwards", "OwnOutputOnce"])
def test_files_hold_what_is_explained(form, tmp_path):
    model, x = ALL[form]().eval(), torch.randn(3, 5, 4)
    explainer = fxlrp.compile(model, "conserving")
    wanted = explainer(x).relevance
    for path in (explainer.save(tmp_path / "loop.pt2"), explainer.export_onnx(tmp_path / "loop.onnx")):
        assert_close(fxlrp.load(path)(x).relevance, wanted, limit=1e-5)


@pytest.mark.parametrize("options", [{"memory": "low"}, {"differentiable": True}], ids=str)
def test_options_of_compile_hold(options, step_by_step):
    model, x = TwoLayers(nn.LSTMCell).double().eval(), torch.randn(2, 5, 4, dtype=DOUBLE)
    found = fxlrp.compile(model, "conserving", **options)(x).relevance
    assert_close(found.detach(), step_by_step(model, "conserving", x)[0].relevance, limit=1e-10)
    several = fxlrp.compile(model, "conserving", **options)(x, target=[0, 2]).relevance
    for i, target in enumerate((0, 2)):
        one = fxlrp.compile(model, "conserving")(x, target=target).relevance
        assert_close(several[:, i].detach(), one, limit=1e-10)
