"""All optimisations where a first layer does not find the batch in front."""

import pytest
import torch
import torch.nn.functional as F
from optimize_checks import DOUBLE, assert_changes_nothing
from torch import nn


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


@pytest.mark.parametrize("way", ["sequence first", "folded", "flattened"])
def test_a_batch_axis_that_is_not_in_front_gives_the_same_explanation(way):
    model, x = PaddedRows(way).double().eval(), torch.randn(3, 6, 3, dtype=DOUBLE)
    assert_changes_nothing(model, x, optimize=True)
    with torch.no_grad():
        model.layer.weight.copy_(-model.layer.weight.abs())  # no share at all
    assert_changes_nothing(model, x, optimize=True)
