"""The second way of capture: what symbolic tracing cannot follow is read from example inputs."""

import copy
import pickle
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_items_independent, assert_unchanged, snapshot
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, InputError, NotCapturedError, PatternError, RuleError, UnknownOperationError
from fxlrp.rules import Epsilon

DOUBLE = torch.float64


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        if x.shape[-1] != self.norm.normalized_shape[0]:  # control flow on shapes: no symbolic trace
            raise ValueError("width")
        h = self.norm(x)
        padding = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        return x + self.mlp(x)


class Encoder(nn.Module):
    def __init__(self, width=8, size=12, blocks=1):
        super().__init__()
        self.size = size
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        assert x.shape[2] == x.shape[3] == self.size
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def make_model(blocks=1):
    torch.manual_seed(0)
    return Encoder(blocks=blocks).double().eval()


def make_x():
    return torch.randn(3, 3, 12, 12, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def deep():
    """Two blocks: a capture takes twice as long."""
    return make_model(blocks=2)


@pytest.fixture
def x():
    return make_x()


@pytest.fixture
def explainer(model):
    return fxlrp.compile(model, "conserving")


# When it is captured --------------------------------------------------------------------------------


def test_it_is_captured_at_the_first_call(deep, x):
    explainer = fxlrp.compile(deep, "conserving")
    before = snapshot(deep, x)
    assert_conserves(explainer, x)
    assert torch.equal(explainer(x).output, deep(x))
    assert explainer.capture == "export"
    assert_unchanged(before, snapshot(deep, x))


def test_it_is_captured_at_once_from_example_inputs(deep, x):
    explainer = fxlrp.compile(deep, "conserving", example_inputs=x)
    assert explainer.capture == "export"
    assert {join.kind for join in explainer.joins} == {"identity"}
    assert len(explainer.joins) == 4
    by_name = fxlrp.compile(deep, "conserving", example_inputs={"x": x[:1]})
    assert_close(by_name(x).relevance, explainer(x).relevance)


def test_what_can_be_traced_symbolically_is(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2)).double().eval()
    explainer = fxlrp.compile(model, "conserving", example_inputs=x)
    assert explainer.capture == "symbolic"


def test_before_that_the_graph_is_not_known(explainer, x):
    everything = ("joins", "capture", "graph_module", "graph", "code", "dot")
    for asked in everything:
        with pytest.raises(NotCapturedError, match=r"first call.*example_inputs"):
            getattr(explainer, asked)
    explainer(x)
    for asked in everything:
        assert getattr(explainer, asked) is not None, asked


def test_copies_are_captured_anew(explainer, x):
    expected = explainer(x).relevance
    assert_close(copy.deepcopy(explainer)(x).relevance, expected)
    assert_close(pickle.loads(pickle.dumps(explainer))(x).relevance, expected)


# What it is like -------------------------------------------------------------------------------------


def test_the_batch_stays_free(explainer, x):
    explainer(x[:2])
    for batch in (1, 2, 3):
        assert explainer(x[:batch]).relevance.shape == (batch, 3, 12, 12)
    assert_items_independent(explainer, x)


@pytest.fixture(scope="module")
def relevance_captured_at_the_first_call():
    return fxlrp.compile(make_model(), "conserving")(make_x()).relevance


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 12])
def test_any_example_will_do(model, x, batch, relevance_captured_at_the_first_call):
    expected = relevance_captured_at_the_first_call
    example = torch.randn(batch, 3, 12, 12, dtype=DOUBLE)
    assert_close(fxlrp.compile(model, "conserving", example_inputs=example)(x).relevance, expected)


def test_what_was_fixed_is_told(explainer, x):
    explainer(x)
    with pytest.raises(InputError, match=r"captured for \(batch, 3, 12, 12\); axis 2 is fixed: compile it again"):
        explainer(F.pad(x, (2, 2, 2, 2)))
    with pytest.raises(InputError, match=r"input x has shape \(3, 3, 12\)"):
        explainer(x[..., 0])


def test_module_names_survive(deep, x):
    explainer = fxlrp.compile(
        deep, "conserving", rules={"blocks.1.*": Epsilon(1e-3)}, checkpoints=("blocks.1", "blocks.0.mlp"),
        example_inputs=x,
    )
    rules = {row.path: row.rule for row in explainer.ledger(x) if row.kind == "linear"}
    assert rules["blocks.1.mlp.2"] == "Epsilon(0.001)"
    assert rules["blocks.0.mlp.2"] == "ZPlus()"
    assert rules["blocks.1.attention.out_proj"] == "Epsilon(0.001)"  # a module that is never called
    assert explainer(x).checkpoints["blocks.1"].shape == (3, 9, 8)
    with pytest.raises(PatternError, match=r"blocks\.7"):
        fxlrp.compile(deep, "conserving", rules={"blocks.7": Epsilon()}, example_inputs=x)


def test_it_follows_the_models_weights(model, explainer, x):
    before = explainer(x).relevance
    with torch.no_grad():
        model.blocks[0].mlp[0].weight.mul_(-1)
    assert not torch.equal(explainer(x).relevance, before)
    assert_close(explainer(x).relevance, fxlrp.compile(model, "conserving")(x).relevance)
    model.load_state_dict(Encoder().double().state_dict(), assign=True)
    expected = fxlrp.compile(model, "conserving")(x).relevance
    assert_close(explainer(x).relevance, expected)
    assert_close(explainer.float()(x.float()).relevance.double(), expected, limit=1e-4)


def test_both_ways_of_capture_give_the_same():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, guarded):
            super().__init__()
            self.guarded = guarded
            self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            if self.guarded and x.shape[1] != 3:
                raise ValueError
            x = F.max_pool2d(F.relu_(self.bn(self.conv1(x))), 2)
            gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
            x = F.relu(x + self.conv2(x) * gate)
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    traced, guarded = Net(False).double().eval(), Net(True).double().eval()
    guarded.load_state_dict(traced.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    explainers = fxlrp.compile(traced, "conserving"), fxlrp.compile(guarded, "conserving")
    first, second = (explainer(x) for explainer in explainers)
    assert [explainer.capture for explainer in explainers] == ["symbolic", "export"]
    assert_close(first.relevance, second.relevance)
    kinds = [[(row.path, row.kind) for row in explainer.ledger(x) if row.kind != "routing"] for explainer in explainers]
    assert kinds[0] == kinds[1]


# Inputs -------------------------------------------------------------------------------------------------


class Optional(nn.Module):
    """Takes more than it must."""

    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x, mask=None, *, other=None, factor=1.0):
        h = self.fc(x)
        if mask is not None:
            h = h * mask
        if other is not None:
            h = h + self.other(other)
        return h * factor


def test_optional_and_keyword_inputs():
    model = Optional().double().eval()
    x, other = torch.randn(2, 4, dtype=DOUBLE), torch.randn(2, 5, dtype=DOUBLE)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    explainer = fxlrp.compile(model, "conserving", start="output")
    calls = [((x,), {}), ((x, mask), {}), ((x,), {"other": other}), ((x,), {"other": other, "mask": mask})]
    for inputs, named in calls:
        explanation = explainer(*inputs, **named)
        assert torch.equal(explanation.output, model(*inputs, **named))
        assert list(explanation.by_input) == [
            name for name in ("x", "mask", "other") if name == "x" or name in named or (name == "mask" and inputs[1:])
        ]
        assert explanation.relevance[0].shape in ((2, 4), (4,))
        assert explainer.ledger(*inputs, **named).error.abs().max() < 1e-12
    assert explainer(x, factor=2.0).start == pytest.approx(2 * explainer(x).start)
    assert torch.equal(explainer(x, mask=None).relevance, explainer(x).relevance)
    assert torch.equal(explainer(x=x).relevance, explainer(x).relevance)


def test_a_mask_of_integers_carries_no_signal():
    model = Optional().double().eval()
    x, mask = torch.randn(2, 4, dtype=DOUBLE), torch.tensor([[1, 0, 1], [1, 1, 0]])
    relevance = fxlrp.compile(model, "conserving", start="output")(x, mask).by_input
    assert not relevance["mask"].any()
    assert relevance["x"].any()


def test_wrong_arguments_are_refused():
    explainer = fxlrp.compile(Optional().eval(), "conserving")
    with pytest.raises(InputError, match=r"takes 1 input\(s\) \(x, mask=None, other=None, factor=1.0\), not 0"):
        explainer()
    with pytest.raises(InputError, match="unexpected keyword argument 'masc'"):
        explainer(torch.randn(2, 4), masc=None)
    with pytest.raises(InputError, match="must be a tensor, not str"):
        explainer("x")
    with pytest.raises(InputError, match=r"other has shape \(3, 5\): the first axis of every tensor must be the batch"):
        explainer(torch.randn(2, 4), other=torch.randn(3, 5))


# Outputs ------------------------------------------------------------------------------------------------


Pair = namedtuple("Pair", "first second")


class Returns(nn.Module):
    def __init__(self, form, guarded):
        super().__init__()
        self.form, self.guarded, self.a, self.b = form, guarded, nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        if self.guarded and x.shape[1] != 4:
            raise ValueError
        return self.form(self.a(x), self.b(x))


FORMS = {
    "dict": (lambda a, b: {"main": a, "aux": b}, "main", "aux"),
    "ordered": (lambda a, b: OrderedDict(out=a, aux=b), None, "aux"),
    "tuple": (lambda a, b: (a, b), 0, 1),
    "nested": (lambda a, b: [a, {"deep": (b,)}], 0, lambda out: out[1]["deep"][0]),
    "namedtuple": (Pair, lambda out: out.first, lambda out: out.second),
    "beside what is no tensor": (lambda a, b: {"logits": a, "aux": b, "cache": object()}, None, "aux"),
}


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
@pytest.mark.parametrize("form", FORMS)
def test_one_of_several_outputs(form, guarded):
    make, first, second = FORMS[form]
    model, x = Returns(make, guarded).eval(), torch.randn(2, 4)
    for wanted, layer in ((first, model.a), (second, model.b)):
        explanation = fxlrp.compile(model, "conserving", output=wanted, start="logit")(x)
        assert_close(explanation.start, layer(x).amax(1).detach())
        assert type(explanation.output) is type(model(x))


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
def test_outputs_that_are_not_there_or_not_chosen(guarded):
    model, x = Returns(lambda a, b: (a, b), guarded).eval(), torch.randn(2, 4)
    with pytest.raises(CaptureError, match="a tuple of 2: say with output="):
        fxlrp.compile(model, "conserving", example_inputs=x)
    with pytest.raises(CaptureError, match="output='main' is not in what the model returns: a tuple of 2"):
        fxlrp.compile(model, "conserving", output="main", example_inputs=x)


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
def test_a_callable_may_cut_the_output(guarded):
    model, x = Returns(lambda a, b: torch.stack([a, 2 * a], dim=1), guarded).eval(), torch.randn(2, 4)
    explainer = fxlrp.compile(model, "conserving", output=lambda out: out[:, -1], start="logit")
    assert_close(explainer(x).start, 2 * model.a(x).amax(1).detach())
    assert explainer(x).output.shape == (2, 2, 3)
    assert explainer.ledger(x).error.abs().max() < 1e-5


# What cannot be captured -----------------------------------------------------------------------------------


class Decides(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def test_control_flow_on_values_names_line_module_and_way_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Decides())).eval()
    with pytest.raises(CaptureError, match=r"(?s)test_export.py:\d+, in '1.1' \(Decides\).*torch.where"):
        fxlrp.compile(model, "conserving")(torch.randn(2, 3))


def test_an_unknown_operation_inside_names_line_and_module():
    class Inner(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) if x.shape[0] else x

    model = nn.Sequential(nn.Linear(3, 3), Inner()).eval()
    with pytest.raises(UnknownOperationError, match=r"(?s)bessel_j0.*in '1' \(.*test_export.py:\d+\).*register"):
        fxlrp.compile(model, "conserving", example_inputs=torch.randn(2, 3))


def test_a_model_for_one_batch_size_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.cat([x[i : i + 1] * (i + 1) for i in range(x.shape[0])])

    with pytest.raises(CaptureError, match="one batch size only"):
        fxlrp.compile(nn.Sequential(nn.Linear(3, 3), Fixed()).eval(), "conserving")(torch.randn(2, 3))


def test_what_cannot_be_is_told_before_the_first_call(model):
    for options, message in (
        ({"rules": {"blocks.0": "epsilon"}}, "must be a rule"),
        ({"rules": {3: Epsilon()}}, "a key is a module name"),
        ({"checkpoints": ("blocks.9",)}, "'blocks.9' is no module of this model; did you mean 'blocks"),
        ({"split": "fair"}, "choose one of"),
    ):
        with pytest.raises(RuleError, match=message):
            fxlrp.compile(model, **options)


class Mapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.last, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.last(self.function(x).relu())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.vmap(torch.tanh, out_dims=1)(x).T,
        lambda x: torch.func.vmap(lambda row: (row * 2, row.sum()), out_dims=(-1, 0))(x)[0].mT,
        lambda x: torch.vmap(lambda row, by: {"a": row * by}, (0, None), {"a": 1})(x, 2.0)["a"].T,
        lambda x: torch.vmap(lambda row: torch.hstack([row[1:], row[:1]]))(x),
        lambda x: torch.stack([torch.hstack([row[1:], row[:1]]) for row in x]),
        lambda x: x * torch.bincount(torch.tensor([0, 1, 1, 3]), torch.ones(4), minlength=4) + torch.vmap(torch.exp)(x),
    ],
    ids=["moved", "two moved", "a dict moved", "joined", "joined in a loop", "counted with weights"],
)
def test_what_is_mapped_over_items_or_joined_is_explained(function):
    torch.manual_seed(0)
    model, x = Mapped(function).eval(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    assert_close(explainer(x).output, model(x).detach(), 1e-5)
    assert_close(explainer(x[:1]).relevance, explainer(x).relevance[:1], 1e-5)
