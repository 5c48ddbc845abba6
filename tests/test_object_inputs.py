"""Objects that hold tensors as inputs: dataclasses, and whatever else has attributes."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from checks import assert_close
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import InputError


@dataclass
class Batch:
    series: Tensor
    mask: Tensor
    name: str = "a batch"

    def __post_init__(self):
        assert isinstance(self.series, Tensor)

    def masked(self, h):
        return h * self.mask


@dataclass(frozen=True, slots=True)
class Frozen:
    series: Tensor
    mask: Tensor

    def masked(self, h):
        return h * self.mask


class Plain:
    def __init__(self, series, mask):
        self.series, self.mask = series, mask

    def masked(self, h):
        return h * self.mask


@dataclass
class Outer:
    inner: Batch
    words: Tensor


class OfTensors(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.table, self.last = nn.Linear(6, 6), nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, series, mask):
        return self.last((self.first(series) * mask).relu().mean(1))


class OfObject(OfTensors):
    def forward(self, batch):
        return self.last(batch.masked(self.first(batch.series)).relu().mean(1))


class OfNested(OfTensors):
    def forward(self, outer, scale=1.0):
        h = outer.inner.masked(self.first(outer.inner.series)).relu().mean(1)
        return self.last(h + scale * self.table(outer.words))


def tensors(items=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, 6, generator=generator)[:items].double(), torch.rand(3, 5, 1).add(0.5)[:items].double()


class Space(SimpleNamespace):
    def __init__(self, series, mask):
        super().__init__(series=series, mask=mask)

    def masked(self, h):
        return h * self.mask


@pytest.mark.parametrize("kind", [Batch, Frozen, Plain, Space])
def test_an_object_is_explained_as_its_tensors_are(kind):
    plain, explainer = (fxlrp.compile(net().double().eval(), "conserving") for net in (OfTensors, OfObject))
    for series, mask in (tensors(), tensors(1), tensors(2)):
        explanation, expected = explainer(kind(series, mask), target=1), plain(series, mask, target=1)
        assert_close(explanation.output, expected.output)
        assert list(explanation.by_input) == ["batch_series", "batch_mask"]
        for own, other in zip(explanation.relevance, expected.relevance, strict=True):
            assert_close(own, other)


def test_an_object_in_an_object_is_opened_too_and_new_values_are_seen():
    model = OfNested().double().eval()
    explainer = fxlrp.compile(model, "conserving")
    series, mask = tensors()
    for batch in (Batch(series, mask), Batch(2 * series, mask.flip(0), name="another")):
        outer = Outer(batch, torch.tensor([1, 2, 3]))
        for arguments in ((outer,), (outer, 2.0)):
            explanation = explainer.explain(arguments, target=0)
            assert_close(explanation.output, model(*arguments))
            assert list(explanation.by_input) == ["outer_inner_series", "outer_inner_mask", "outer_words"]
    before = vars(batch).copy()
    explainer(outer)
    assert all(value is before[name] for name, value in vars(batch).items())


def test_a_tensor_of_another_kind_is_found_in_an_object():
    explainer = fxlrp.compile(OfObject().double().eval(), "conserving")
    series, mask = tensors()
    with pytest.raises(InputError, match=r"series is sparse"):
        explainer(Batch(series.to_sparse(), mask))
