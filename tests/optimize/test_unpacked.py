"""Weights that are kept in fewer bits are unpacked where they are read."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxlrp
from fxlrp.common.tensors import DERIVED

DOUBLE = torch.float64
SIZES = (12, 12, 12, 12, 5)


class Packed(nn.Module):
    """A linear layer whose weights are whole numbers of eight bits, with a scale for each row."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("packed", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x):
        return F.linear(x, self.packed.to(self.scale.dtype) * self.scale, self.bias)

    def unpacked(self):
        layer = nn.Linear(*reversed(self.packed.shape)).to(self.scale.dtype)
        layer.weight.data, layer.bias.data = self.packed * self.scale, self.bias.data
        return layer


def models():
    layers = [nn.Linear(*sizes).to(DOUBLE) for sizes in pairwise(SIZES)]
    packed = nn.Sequential(*(part for layer in layers for part in (Packed(layer), nn.ReLU()))).eval()
    plain = nn.Sequential(*(part.unpacked() if isinstance(part, Packed) else part for part in packed)).eval()
    return packed, plain


class Alive(TorchDispatchMode):
    """The most matrices of weights that are held as numbers at once, besides the arguments of a call."""

    def __init__(self):
        super().__init__()
        self.held, self.most = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == DOUBLE and tuple(result.shape) in {(12, 12), (5, 12)}:
            self.held.append(torch.multiprocessing.reductions.StorageWeakRef(result.untyped_storage()))
        self.held = [storage for storage in self.held if not storage.expired()]
        self.most = max(self.most, len(self.held))
        return result


@pytest.mark.parametrize("preset", ["epsilon", "evidence", "conserving"])
def test_relevance_is_that_of_the_numbers_and_one_layer_is_unpacked_at_a_time(preset):
    torch.manual_seed(0)
    packed, plain = models()
    x = torch.randn(3, 12, dtype=DOUBLE)
    most = {}
    for optimize in (True, ["fold_weights"]):
        explainer = fxlrp.compile(packed, preset, optimize=optimize)
        assert_close(explainer(x).relevance, fxlrp.compile(plain, preset)(x).relevance, 1e-10)
        with Alive() as alive:
            explainer(x)
        most[bool(optimize is True)] = alive.most
        assert not alive.held or not [storage for storage in alive.held if not storage.expired()]
        assert not hasattr(explainer.graph_module, DERIVED)
    # The numbers of one layer, and what the rule makes of them; else those of all four.
    assert most[True] <= 4 < most[False] + 1


def test_what_is_written_to_packed_weights_is_followed():
    torch.manual_seed(0)
    packed, _ = models()
    x = torch.randn(3, 12, dtype=DOUBLE)
    explainer = fxlrp.compile(packed, "epsilon")
    before = explainer(x).relevance
    with torch.no_grad():
        packed[0].packed.mul_(-1)
    after = explainer(x).relevance
    assert not torch.allclose(before, after)
    assert_close(after, fxlrp.compile(packed, "epsilon")(x).relevance, 1e-12)
