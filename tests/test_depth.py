"""Rules by depth: the classifier, and what lies from a stride on, found in the graph without naming layers."""

from dataclasses import replace

import pytest
import torch
import torchvision
from checks import assert_conserves
from torch import nn

import fxlrp
from fxlrp.errors import RuleError
from fxlrp.passes.facts import facts
from fxlrp.presets import preset_named
from fxlrp.rules import Absolute, Epsilon, Gamma, GammaSplit, SignedSplit


def classifiers(model, x):
    explainer = fxlrp.compile(model.eval(), "evidence", example_inputs=x)
    return [node.name for node in explainer.model_graph.nodes if node.op == "call_function" and facts(node).classifier]


class Head(nn.Module):
    """Tokens, an attention, and a head that reads them off by ``read``."""

    def __init__(self, read):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden, self.head, self.read = nn.Linear(8, 8), nn.Linear(8, 3), read

    def forward(self, x):
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.hidden(self.read(self.norm(h))).relu())


class Cosine(nn.Module):
    """The cosine of two embeddings, of the two halves of the input."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        first, second = (nn.functional.normalize(self.embed(half), dim=-1) for half in x.chunk(2, dim=-1))
        return (first * second).sum(-1)


@pytest.mark.parametrize(
    ("model", "shape", "names"),
    [
        (Cosine, (2, 8), ["embed_2", "linalg_vector_norm", "embed_5", "linalg_vector_norm_1", "sum_1"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1)),
         (1, 3, 6, 6), ["_2", "_3"]),
        (lambda: torchvision.models.resnet18(num_classes=5), (1, 3, 32, 32), ["fc"]),
        (lambda: torchvision.models.squeezenet1_1(num_classes=5), (1, 3, 64, 64), ["classifier_1", "classifier_3"]),
        (lambda: torchvision.models.mobilenet_v2(num_classes=5), (1, 3, 32, 32), ["classifier_1"]),
        (lambda: Head(lambda h: h[:, 0]), (2, 5, 6), ["head"]),
        (lambda: Head(lambda h: h.mean(1)), (2, 5, 6), ["head"]),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (2, 4), ["_2"]),
    ],
)
def test_the_classifier_is_found(model, shape, names):
    found = classifiers(model(), torch.randn(shape))
    assert [name.strip("_") for name in found] == [name.strip("_") for name in names]


def activated(model, x):
    explainer = fxlrp.compile(model.eval(), "evidence", example_inputs=x)
    return [node.name for node in explainer.model_graph.nodes if node.op == "call_function" and facts(node).activated]


class Gated(nn.Module):
    """A gated MLP with a scale on its branch, as language models have it."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.scale = nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x):
        up = nn.functional.dropout(self.up(x), training=self.training)
        return self.head(x + self.scale * self.down(nn.functional.silu(self.gate(x)) * up))


@pytest.mark.parametrize(
    ("model", "shape", "names"),
    [
        (Gated, (2, 6), ["up", "gate"]),
        (lambda: Head(lambda h: h[:, 0]), (2, 5, 6), ["hidden"]),
        (lambda: torchvision.models.resnet18(num_classes=5).layer1[0], (2, 64, 4, 4), ["conv1"]),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)), (2, 4), []),
    ],
)
def test_layers_before_an_activation_are_found(model, shape, names):
    assert activated(model(), torch.randn(shape)) == names


def test_evidence_against_a_class_survives_the_mean_of_its_logits():
    """A map of logits of both signs: the mean hands each position its own part."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    model[0].weight.data[:] = torch.tensor([[[[1.0]]], [[[-1.0]]]])
    x = torch.tensor([[[[1.0, 3.0], [-2.0, 2.0]]]], dtype=torch.float64)
    relevance = fxlrp.compile(model, "evidence", start="logit", rules={"0": Epsilon(0)})(x, target=0).relevance
    assert relevance.flatten().tolist() == pytest.approx([0.25, 0.75, -0.5, 0.5])


def test_strides_add_up_from_the_input():
    model = torchvision.models.resnet18(num_classes=5).eval()
    strides = {node.name: facts(node).stride for node in fxlrp.compile(model, "conserving").model_graph.nodes}
    names = ("conv1", "layer1_0_conv1", "layer2_0_conv1", "layer3_0_conv1", "layer4_1_conv2")
    assert [strides[name] for name in names] == [2, 4, 8, 16, 32]


def test_rules_by_depth_are_told_in_the_summary_and_conserve():
    model = torchvision.models.resnet18(num_classes=5).double().eval()
    late = Gamma(1.0, stabilizer=0, vanishing="rescale")
    preset = fxlrp.Preset("mine", classifier=Epsilon(0, bias="share", vanishing="rescale"), coarse=(32, late))
    explainer = fxlrp.compile(model, preset, start="log_odds")
    rows = {row.node: row for row in explainer.summary()}
    assert rows["fc"].rule == repr(Epsilon(0, bias="share", vanishing="rescale"))
    assert rows["fc"].reason == "preset mine: classifier"
    assert rows["layer4_0_conv1"].rule == repr(late)
    assert "from stride 32 on" in rows["layer4_0_conv1"].reason
    assert rows["layer3_0_conv1"].rule == "ZPlus()"
    assert_conserves(explainer, torch.randn(2, 3, 64, 64, dtype=torch.float64))


def test_models_with_attentions_take_the_rules_for_them():
    model = Head(lambda h: h[:, 0]).double().eval()
    explainer, x = fxlrp.compile(model, "evidence", start="log_odds"), torch.randn(2, 5, 6, dtype=torch.float64)
    explainer(x)
    rules = {row.node: row.rule for row in explainer.summary()}
    assert rules["embed"] == repr(Gamma(0.05, bias="absorb"))
    assert rules["hidden"] == rules["head"] == repr(Epsilon(1e-6, bias="absorb"))
    assert_conserves(explainer, x, absorbs=("bias", "stabilizer"))


def test_models_of_token_numbers_take_the_rules_for_them():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body = nn.Embedding(9, 6), Head(lambda h: h[:, 0])

        def forward(self, numbers):
            return self.body(self.words(numbers))

    explainer = fxlrp.compile(Reader().double().eval(), "evidence")
    numbers = torch.randint(0, 9, (2, 5))
    explainer(numbers)
    rows = {row.node: row for row in explainer.summary()}
    assert rows["body_embed"].rule == rows["body_head"].rule == repr(Epsilon(1e-6, bias="absorb"))
    assert rows["body_head"].reason == "preset evidence"
    assert rows["body_add"].rule == repr(GammaSplit(0.02))
    assert_conserves(explainer, numbers, absorbs=("bias", "stabilizer"))
    given = fxlrp.compile(Reader().double().eval(), "evidence", split="signed", example_inputs=numbers)
    assert {row.node: row for row in given.summary()}["body_add"].rule == repr(SignedSplit())


def test_a_large_bias_at_the_classifier_amplifies_nothing():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.rand(1, 4, dtype=torch.float64)
    with torch.no_grad():
        hidden = model[:2](x)[0]
        model[2].weight -= (model[2].weight @ hidden - 1e-9)[:, None] * hidden / hidden.square().sum()
        model[2].bias.copy_(torch.tensor([-4.0, -5.0, -6.0]))
        expected = model[2].weight[0] * hidden
    explainer = fxlrp.compile(model, "evidence", start="logit", checkpoints=["2"])
    arrived = explainer(x, target=0).checkpoints["2"][0]
    assert arrived.sum() == pytest.approx(-4.0)
    assert (arrived - expected).std() == pytest.approx(0, abs=1e-6)  # each its contribution, and the same of the bias


def test_the_absolute_rule_shares_by_magnitude():
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    preset = fxlrp.Preset("absolute", linear=Absolute())
    explainer = fxlrp.compile(layer.eval(), preset, start=lambda output, target: torch.ones_like(output))
    relevance = explainer(torch.tensor([[1.0, 1.0, -1.0]])).relevance
    assert relevance[0].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.parametrize(("change", "stride"), [
    (lambda x: nn.functional.pixel_unshuffle(x, 4), 4),
    (lambda x: nn.functional.pixel_shuffle(nn.functional.max_pool2d(x, 8), 4), 2),
    (lambda x: nn.functional.interpolate(x, scale_factor=0.25), 4),
    (lambda x: nn.functional.interpolate(nn.functional.max_pool2d(x, 8), scale_factor=2.0), 4),
    (lambda x: nn.functional.conv_transpose2d(nn.functional.max_pool2d(x, 8), torch.ones(16, 4, 2, 2), stride=2), 4),
    (lambda x: x[:, :, ::4, ::4], 4),
], ids=["unshuffle", "shuffle", "smaller", "larger", "transposed convolution", "slices"])  # fmt: skip
def test_space_is_reduced_and_enlarged_by_more_than_strides(change, stride):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.LazyConv2d(4, 1), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.last(change(self.stem(x))).mean((2, 3)))

    model, x = Between(), torch.randn(1, 3, 32, 32)
    model.eval()(x)
    for least, rule in ((stride, "Gamma"), (stride + 1, "ZPlus")):
        explainer = fxlrp.compile(model, replace(preset_named("conserving"), coarse=(least, fxlrp.rules.Gamma(0.5))))
        explainer(x)
        assert next(row.rule for row in explainer.summary() if row.node == "last").startswith(rule)


@pytest.mark.parametrize("wrong", [
    {"coarse": fxlrp.rules.Gamma(1.0)}, {"coarse": ("16", fxlrp.rules.Gamma(1.0))},
    {"late": (-3, fxlrp.rules.Gamma(1.0))}, {"attention": "conserving"},
], ids=["no pair", "text", "negative", "a name"])  # fmt: skip
def test_a_preset_of_other_types_is_refused(wrong):
    with pytest.raises(RuleError, match=next(iter(wrong))):
        fxlrp.Preset("mine", **wrong)
