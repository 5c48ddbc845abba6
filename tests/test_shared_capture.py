"""fxlrp.capture: a model is read once, whatever is compiled of it."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from checks import assert_close
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError
from fxlrp.runtime import captures
from fxlrp.runtime.plans import MOST_PLANS


class Opened(nn.Module):
    """Symbolic tracing cannot follow it."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        if x.shape[1] < 1:
            raise ValueError
        return self.head(self.first(x).relu())


def test_a_captured_model_is_read_once(counted):
    model, x = Opened().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x)
    for options in ({}, {"preset": "attnlrp"}, {"preset": "conserving", "start": "logit"}):
        explanation = fxlrp.compile(captured, **options)(x, target=1)
        assert_close(explanation.relevance, fxlrp.compile(twin(model), **options)(x, target=1).relevance)
    assert len(counted) == 1 + 3


def twin(model):
    same = Opened().eval()
    same.load_state_dict(model.state_dict())
    return same


def test_a_traced_model_is_captured_without_examples():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    captured = fxlrp.capture(model)
    first, second = (fxlrp.compile(captured, preset) for preset in ("conserving", "epsilon"))
    x = torch.randn(2, 4)
    assert not torch.equal(first(x, target=0).relevance, second(x, target=0).relevance)


def test_the_output_that_was_chosen_is_that_of_what_is_compiled():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return {"a": self.a(x), "b": self.b(x)}

    model, x = Two().eval(), torch.randn(2, 4)
    captured = fxlrp.capture(model, x, output="b")
    expected = fxlrp.compile(model, "conserving", output="b")(x, target=1)
    assert_close(fxlrp.compile(captured, "conserving")(x, target=1).relevance, expected.relevance)


def test_a_model_that_was_changed_is_read_again(counted):
    model, x = Opened().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x)
    model.head = nn.Linear(6, 5).eval()
    assert fxlrp.compile(captured, start="logit")(x).output.shape == (3, 5)
    assert len(counted) == 2


def test_other_sizes_are_read_when_they_come(counted):
    class Fixed(Opened):
        def forward(self, x):
            return super().forward(x.reshape(x.shape[0], 4)[:, : int(x.shape[1])])

    model = Fixed().eval()
    captured = fxlrp.capture(model, torch.randn(3, 4))
    for batch in (3, 5, 2):
        x = torch.randn(batch, 4)
        assert_close(fxlrp.compile(captured, "conserving")(x).output, model(x))
    assert len(counted) <= 2


class Counted(Opened):
    """Its forward() makes a number of the batch."""

    def forward(self, x):
        return super().forward(x * torch.ones(int(x.shape[0]), 1))


def test_sizes_that_take_another_capture_are_told_in_one_line_and_the_last_are_kept(counted):
    model = Counted().eval()
    captured = fxlrp.capture(model, torch.randn(2, 4))
    explainer = fxlrp.compile(captured, "conserving", start="logit")
    explainer(torch.randn(2, 4), target=0)
    reads = len(counted)
    for batch in range(3, 3 + MOST_PLANS):
        with pytest.warns(UserWarning, match=rf"^Counted was captured anew for sizes x \({batch}, 4\).*kept$"):
            explainer(torch.randn(batch, 4), target=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(3, 3 + MOST_PLANS):
            x = torch.randn(batch, 4)
            assert_close(explainer(x, target=0).output, model(x))
    assert len(explainer._engine._plans) <= MOST_PLANS
    assert len(captured._kept) <= captures.MOST_CAPTURES
    assert len(counted) == reads + 2 * MOST_PLANS  # with free sizes first, and then for these


def test_what_cannot_be_captured_says_so_at_once():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="Control flow"):
        fxlrp.capture(Branching().eval(), torch.randn(2, 3))


class Both(Opened):
    def forward(self, x):
        return {"features": self.first(x), "scores": super().forward(x)}


@dataclass
class Returned:
    scores: torch.Tensor
    features: torch.Tensor


class Fields(Both):
    def forward(self, x):
        return Returned(**super().forward(x))


def shifted(out):
    return out["scores"].squeeze()[:, 1:] * 2 - out["features"].mean(dim=1, keepdim=True)


OUTPUTS = {
    "by key": (Both, "features"),
    "of a function": (Both, lambda out: -out["scores"]),
    "of several": (Both, shifted),
    "by attribute": (Fields, lambda out: out.features * 2),
    "of a field": (Fields, "features"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_another_output_needs_no_other_capture(name, counted):
    kind, output = OUTPUTS[name]
    model, x = kind().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x, output="scores")
    options = {"preset": "conserving", "output": output, "start": "logit"}
    found = [fxlrp.compile(captured, **options)(x, target=1) for _ in range(2)]
    assert len(counted) == 1
    expected = fxlrp.compile(model, **options)(x, target=1)
    assert all(torch.equal(each.relevance, expected.relevance) for each in found)


class Holder:
    def __init__(self, value):
        self.value = value


class Holding(Both):
    def forward(self, x):
        found = super().forward(x)
        return {**found, "held": Holder(found["features"])}


def written(out):
    return out["scores"].mul_(2)


@pytest.mark.parametrize(("kind", "output"), [(Holding, lambda out: out["held"].value), (Both, written)])
def test_an_output_that_a_capture_does_not_hold_is_read_of_the_model(kind, output, counted):
    model, x = kind().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x, output="scores")
    explainer = fxlrp.compile(captured, "conserving", output=output, start="logit")
    relevance = explainer(x, target=1).relevance
    assert len(counted) == 2
    assert_close(relevance, fxlrp.compile(model, "conserving", output=output, start="logit")(x, target=1).relevance)


def test_an_output_that_there_is_not_is_told_without_another_capture(counted):
    model, x = Both().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x, output="scores")
    with pytest.raises(CaptureError, match="output='nothing' is not in what the model returns"):
        fxlrp.compile(captured, output="nothing")(x)
    assert len(counted) == 1


def test_what_does_not_depend_on_the_input_is_told_of_another_output_too():
    model, x = Both().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x, output="scores")
    with pytest.raises(CaptureError, match="does not depend on the input"):
        fxlrp.compile(captured, output=lambda out: torch.ones(3, 4))(x)
