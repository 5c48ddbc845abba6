"""``constant_denominators``: the denominators of a first layer are computed for one item."""

import pytest
import torch
import torch.nn.functional as F
from optimize_checks import DOUBLE, assert_changes_nothing, values_of, written
from optimize_nets import signed, tour
from torch import nn

import fxlrp
from fxlrp.passes.optimize import DEFAULT, NAMES
from fxlrp.steps import primitives


@pytest.mark.parametrize("network", [tour, signed])
def test_a_first_layer_has_the_denominators_of_one_item(network):
    model, x = network()
    plain, constant = (fxlrp.compile(model, optimize=o) for o in (False, ("constant_denominators",)))
    for explainer, batch in ((plain, 3), (constant, 1)):
        (quotient,) = written(explainer, primitives.divide, layer="stem")
        values = values_of(explainer, x)
        assert values[quotient].shape[0] == 3
        assert values[quotient.args[1]].shape[0] == batch
    assert not written(constant, torch.ones_like)
    assert len(written(constant, torch.mul, layer="stem")) == 0  # relevance times ones is relevance


def test_a_padded_first_layer_has_the_denominators_of_one_item():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(F.pad(x, (2, 0, 1, 3)))).mean((2, 3)))

    model, x = Padded().double().eval(), torch.randn(3, 3, 6, 6, dtype=DOUBLE)
    explainer = assert_changes_nothing(model, x, optimize=("constant_denominators",))
    (quotient,) = written(explainer, primitives.divide, layer="stem")
    assert values_of(explainer, x)[quotient.args[1]].shape[0] == 1
    with torch.no_grad():
        model.stem.weight.copy_(-model.stem.weight.abs())  # no share at all: evenly over what carries signal
    assert_changes_nothing(model, x, optimize=True)
    assert_changes_nothing(model, x, optimize=NAMES)


class PaddedRows(nn.Module):
    """Rows (batch, length, features) padded along their length, whose batch a layer does not find in front."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer, self.head = way, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.pad(x, (0, 0, 1, 1))
        n = x.shape[1]
        if self.way == "sequence first":
            return self.head(F.relu(self.layer(x.transpose(0, 1))).mean(0))
        if self.way == "flattened":
            return self.head(F.relu(self.layer(x.flatten(0, 1))).unflatten(0, (-1, n)).mean(1))
        return self.head(F.relu(self.layer(x.reshape(-1, 3))).reshape(-1, n, 4).mean(1))


@pytest.mark.parametrize("optimize", [("constant_denominators",), DEFAULT], ids=["alone", "the default"])
@pytest.mark.parametrize("way", ["sequence first", "folded", "flattened"])
def test_a_batch_axis_that_is_not_in_front_gives_the_same_explanation(way, optimize):
    model, x = PaddedRows(way).double().eval(), torch.randn(3, 6, 3, dtype=DOUBLE)
    assert_changes_nothing(model, x, optimize=optimize)
    with torch.no_grad():
        model.layer.weight.copy_(-model.layer.weight.abs())  # no share at all
    assert_changes_nothing(model, x, optimize=optimize)
