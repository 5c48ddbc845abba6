"""``against=`` at the call: why this class rather than those."""

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError, StartError, TargetError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8)


def test_one_rival_is_the_difference_of_the_logits(model, images):
    explanation = fxlrp.compile(model, "epsilon")(images, target=2, against=4)
    logits = model(images)
    torch.testing.assert_close(explanation.start, logits[:, 2] - logits[:, 4])
    assert explanation.start_name == "log_odds against the classes given"
    expected = fxlrp.compile(model, "epsilon", start=fxlrp.starts.against(4))(images, target=2)
    torch.testing.assert_close(explanation.relevance, expected.relevance)


def test_several_rivals_count_by_their_probabilities_among_themselves(model, images):
    start = fxlrp.compile(model)(images, target=0, against=[1, 3]).start
    logits = model(images)
    rivals = logits[:, [1, 3]]
    torch.testing.assert_close(start, logits[:, 0] - (rivals.softmax(1) * rivals).sum(1))


def test_all_other_classes_are_the_log_odds(model, images):
    others = fxlrp.compile(model)(images, target=1, against=[0, 2, 3, 4])
    named = fxlrp.compile(model, start="log_odds")(images, target=1)
    torch.testing.assert_close(others.relevance, named.relevance)


def test_several_targets_have_the_same_rivals(model, images):
    explainer = fxlrp.compile(model)
    together = explainer(images, target=[0, 1, 2], against=4)
    for index in range(3):
        alone = explainer(images, target=index, against=4)
        torch.testing.assert_close(together.relevance[:, index], alone.relevance)
        torch.testing.assert_close(together.start[:, index], alone.start)


def test_each_item_may_have_rivals_of_its_own(model, images):
    explainer, rivals = fxlrp.compile(model), torch.tensor([[1, 2], [2, 3], [4, 1]])
    together = explainer(images, target=0, against=rivals, conditions={"0": [0, 1, 2]})
    for item in range(3):
        alone = explainer(images[item : item + 1], target=0, against=rivals[item].tolist(), conditions={"0": [0, 1, 2]})
        torch.testing.assert_close(together.relevance[item : item + 1], alone.relevance)


def test_the_ledger_and_the_heatmap_are_of_the_same(model, images):
    explainer = fxlrp.compile(model)
    explanation, ledger = explainer(images, target=2, against=4), explainer.ledger(images, target=2, against=4)
    torch.testing.assert_close(ledger.start, explanation.start.double())
    assert ledger.error.abs().max() < 1e-5 * explanation.start.abs().max()
    heatmap = explainer.heatmap(images, target=2, against=4)
    torch.testing.assert_close(heatmap, explanation.relevance.sum(1))


def test_the_next_call_without_rivals_starts_as_before(model, images):
    explainer = fxlrp.compile(model)
    before = explainer(images, target=2)
    explainer(images, target=2, against=4)
    assert torch.equal(explainer(images, target=2).relevance, before.relevance)


@pytest.mark.parametrize(("target", "against", "message"), [
    (2, 9, "class 9 is out of range"),
    (2, "cat", "a rival is None, an int"),
    (2, [], "a list of rivals holds class numbers, at least one"),
    (2, [1, 2], "against= holds class 2, which is explained itself"),
    ([1, 3], 3, "against= holds class 3, which is explained itself"),
    (2, torch.zeros(4, dtype=torch.long), "a rival tensor has one class per item"),
    (2, torch.zeros(3), "holds class numbers as integers"),
])  # fmt: skip
def test_what_is_no_rival_is_refused(model, images, target, against, message):
    with pytest.raises(TargetError, match=message):
        fxlrp.compile(model)(images, target=target, against=against)


def test_a_model_without_classes_has_no_rivals(images):
    with pytest.raises(TargetError, match=r"not \(batch, classes\)"):
        fxlrp.compile(nn.Conv2d(3, 4, 3).eval(), start="output")(images, against=1)


def probabilities(model):
    return nn.Sequential(model, nn.Softmax(1)).eval()


def test_probabilities_are_compared_as_they_are(model, images):
    explanation = fxlrp.compile(probabilities(model))(images, target=1, against=2)
    p = probabilities(model)(images)
    torch.testing.assert_close(explanation.start, p[:, 1] - p[:, 2])
    assert explanation.start_name == "probability against the classes given"
    assert explanation.unit == "probability"
    several = fxlrp.compile(probabilities(model))(images, target=1, against=[2, 3])
    rivals = p[:, 2:4]
    torch.testing.assert_close(several.start, p[:, 1] - rivals.square().sum(1) / rivals.sum(1))


@pytest.mark.parametrize("start", ["log_odds", "softmax_gradient"])
def test_a_start_of_logits_is_refused_where_the_model_gives_probabilities(model, images, start):
    with pytest.raises(StartError, match="takes logits, and the model gives probabilities"):
        fxlrp.compile(probabilities(model), start=start)(images)


def test_the_probability_of_a_model_that_gives_it_is_its_own(model, images):
    explanation = fxlrp.compile(probabilities(model), start="probability")(images, target=1)
    torch.testing.assert_close(explanation.start, probabilities(model)(images)[:, 1])


def test_the_predicted_class_is_no_rival_of_itself(model, images):
    explainer = fxlrp.compile(model)
    predicted = int(model(images[:1]).argmax())
    with pytest.raises(TargetError, match="which the model predicts for item 0"):
        explainer(images[:1], against=predicted)
    with pytest.raises(TargetError, match="which the model predicts"):
        explainer.ledger(images[:1], against=[predicted, (predicted + 1) % 5])


def test_a_single_output_is_in_a_unit_of_its_own(images):
    single = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval()
    assert fxlrp.compile(single)(images).unit == "output"
    assert fxlrp.compile(nn.Sequential(single, nn.Flatten(0)).eval(), batch=0)(images).unit == "output"


def test_a_file_has_no_rivals(model, images, tmp_path):
    explainer = fxlrp.compile(model)
    explainer(images)
    explainer.save(tmp_path / "net.pt2")
    with pytest.raises(InputError, match="a file holds the program of one start"):
        fxlrp.load(tmp_path / "net.pt2")(images, against=2)
