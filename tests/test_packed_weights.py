"""Weights that a tensor class keeps in fewer bits are explained by the numbers that it makes of them."""

import pytest
import torch
from torch import nn

import fxlrp


class Eighths(torch.Tensor):
    """Integers and a scale, as packages for quantisation keep weights; all that it can be used for is a layer."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def dequantize(self):
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.dequantize(), *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(f"{func} of a packed weight")


def packed(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return nn.Parameter(Eighths((weight / scale).round().to(torch.int8), scale), requires_grad=False)


@pytest.mark.parametrize("preset", ["conserving", "evidence", "attnlrp", "epsilon"])
def test_packed_weights_are_explained_by_their_numbers(preset):
    torch.manual_seed(0)
    net, same = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval() for _ in range(2))
    for layer, other in zip(net, same, strict=True):
        if isinstance(layer, nn.Linear):
            layer.weight = packed(layer.weight.detach())
            other.weight, other.bias = nn.Parameter(layer.weight.dequantize()), layer.bias
    x = torch.randn(3, 6, dtype=torch.float64)
    explanation, expected = fxlrp.compile(net, preset)(x), fxlrp.compile(same, preset)(x)
    torch.testing.assert_close(explanation.output, net(x))
    torch.testing.assert_close(explanation.relevance, expected.relevance)
    assert isinstance(net[0].weight, Eighths)
