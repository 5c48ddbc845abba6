"""An exported graph is made functional node by node; the whole model is run anew only where that cannot be."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from torch import nn
from torch.export import ExportedProgram

import fxlrp
from fxlrp.errors import CaptureError


class Exported(nn.Module):
    """Symbolic tracing cannot follow it; ``function`` says what it computes of two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.function = function

    def forward(self, x):
        if x.shape[1] < 1:
            raise ValueError
        return self.head(self.function(self, self.first(x)))


@pytest.fixture
def whole(monkeypatch):
    """How often a whole program was decomposed."""
    calls = []
    decompose = ExportedProgram.run_decompositions
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda *a, **k: calls.append(1) or decompose(*a, **k))
    return calls


def explained(function):
    torch.manual_seed(0)
    model, x = Exported(function).eval(), torch.randn(3, 6)
    explanation = fxlrp.compile(model, "conserving", start="logit")(x, target=1)
    assert_close(explanation.output, model(x))
    assert_close(explanation.relevance.sum(dim=1), explanation.start)


def read_after(m, h):
    kept = F.relu(h, inplace=True)
    return h + kept


def through_a_cast(m, h):
    same = h.to(torch.float32)
    same.mul_(2)
    return h + 1


def a_copy_that_is_written(m, h):
    copied = h.clone()
    copied.mul_(2)
    return h + copied


def through_dropout(m, h):
    dropped = F.dropout(h, 0.5, m.training)
    dropped.add_(1)
    return h * 0.5 + dropped


def of_a_constant(m, h):
    mask = torch.zeros(8)
    mask.fill_(2.0)
    return h * mask


BY_NODE = {
    "overwritten, then read": read_after,
    "through a cast that does nothing": through_a_cast,
    "a copy that is written": a_copy_that_is_written,
    "through a dropout": through_dropout,
    "a constant": of_a_constant,
    "to a power": lambda m, h: h.mul_(0.1).exp_().pow_(0.5).pow_(torch.ones(8) * 2),
    "two in a row": lambda m, h: h.mul_(2).add_(1).relu_(),
    "an operation that torch opens": lambda m, h: torch.addcdiv(h, h, torch.ones(8) + 1, value=0.5),
    "an alias that torch opens": lambda m, h: torch.movedim(h.reshape(-1, 4, 2), 1, 2).reshape(-1, 8),
    "several values of one that torch opens": lambda m, h: torch.cat(torch.tensor_split(h, 2, dim=1)[::-1], dim=1),
    "a mask of numbers": lambda m, h: h.masked_fill((torch.arange(8) < 3) & (torch.ones(8) > 0), 0.0),
}


@pytest.mark.parametrize("name", BY_NODE)
def test_what_is_done_in_place_or_unknown_is_opened_by_itself(name, whole):
    explained(BY_NODE[name])
    assert not whole


def a_part_is_written(m, h):
    h[:, 0] *= 2
    return h


def a_view_is_read(m, h):
    half = h[:, :4]
    h.mul_(2)
    return torch.cat([half, h[:, 4:]], dim=1)


def under_autocast(m, h):
    with torch.autocast("cpu", enabled=False):
        return h * 2


WHOLE = {"a part is written": a_part_is_written, "a view is read": a_view_is_read, "a block": under_autocast}


@pytest.mark.parametrize("name", WHOLE)
def test_memory_under_two_names_and_blocks_are_for_torch_to_follow(name, whole):
    explained(WHOLE[name])
    assert whole


@pytest.mark.parametrize(
    "function",
    [
        lambda m, h: F.dropout(h, 0.5, True), lambda m, h: F.alpha_dropout(h, 0.5, True),
        lambda m, h: F.batch_norm(h, None, None, training=True),
    ],
    ids=["dropout", "alpha dropout", "batch statistics"],
)  # fmt: skip
def test_what_stays_as_in_training_is_refused(function):
    with pytest.raises(CaptureError):
        explained(function)
