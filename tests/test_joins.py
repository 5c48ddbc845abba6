"""Joins: which adds they are, their kinds and branches."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fxlrp

TORCHVISION = {
    "resnet18": (5, 3, 0),
    "resnet50": (12, 4, 0),
    "mobilenet_v2": (10, 0, 0),
    "efficientnet_b0": (9, 0, 0),
    "regnet_y_400mf": (12, 4, 0),
    "convnext_tiny": (18, 0, 0),
    "densenet121": (0, 0, 0),
    "inception_v3": (0, 0, 0),
    "vit_b_16": (24, 0, 0),
}
LONG = ("regnet_y_400mf", "densenet121")
"""Joins as in ResNet-50, and none as in Inception: for the long run."""
TIMM = {"resnetv2_50": (12, 4, 0), "hrnet_w18_small": (18, 5, 23), "dla34": (8, 4, 0)}


def kinds(model):
    count = Counter(join.kind for join in fxlrp.compile(model.eval(), "conserving").joins)
    return count["identity"], count["projection"], count["merge"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in TORCHVISION]
)
def test_joins_of_torchvision_models(name):
    options = {"init_weights": False} if name == "inception_v3" else {}
    # regnets compute their widths with tensors, which need values
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
    assert kinds(model) == TORCHVISION[name]


@pytest.mark.slow
def test_joins_of_a_windowed_transformer_that_is_captured_by_export():
    model = torchvision.models.swin_t(weights=None).eval()
    explainer = fxlrp.compile(model, "conserving", example_inputs=torch.randn(1, 3, 224, 224))
    assert Counter(join.kind for join in explainer.joins) == {"identity": 24}


@pytest.mark.parametrize("name", TIMM)
def test_joins_of_timm_models(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    assert kinds(model) == TIMM[name]


def test_a_join_knows_its_branches():
    joins = {join.name: join for join in fxlrp.compile(torchvision.models.resnet18().eval(), "conserving").joins}
    identity, projection = joins["layer1_0_add"], joins["layer2_0_add"]
    assert (identity.kind, identity.skip, identity.residual, identity.fork, identity.path) == (
        "identity", "maxpool", "layer1_0_bn2", "maxpool", "layer1.0",
    )  # fmt: skip
    assert (projection.kind, projection.skip, projection.residual, projection.fork, projection.path) == (
        "projection", "layer2_0_downsample_1", "layer2_0_bn2", "layer1_1_relu_1", "layer2.0",
    )  # fmt: skip


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.function(self, x)


def joins(function):
    explainer = fxlrp.compile(Function(function).eval(), "conserving", start=ones)
    return [(join.kind, join.skip, join.residual) for join in explainer.joins]


def ones(output, target):
    return torch.ones_like(output)


CASES = {
    "identity on the left": (lambda m, x: x + m.a(x), [("identity", "x", "a")]),
    "identity on the right": (lambda m, x: m.a(x) + x, [("identity", "x", "a")]),
    "difference": (lambda m, x: m.a(x) - x, [("identity", "x", "a")]),
    "layer scale on the residual": (lambda m, x: x + m.gamma * m.a(x), [("identity", "x", "mul")]),
    "layer scale on the skip": (lambda m, x: m.gamma * x + m.a(x), [("identity", "mul", "a")]),
    "moved skip": (lambda m, x: x.flip(1) + m.a(x), [("identity", "flip", "a")]),
    "option A": (
        lambda m, x: F.pad(x[:, :2], (0, 0, 0, 0, 0, 2)) + m.a(x),
        [("identity", "constant_pad_nd", "a")],
    ),
    "projection": (lambda m, x: m.b(m.a(x).relu()) + m.bn(m.c(x)), [("projection", "bn", "b")]),
    "pooled projection": (
        lambda m, x: m.b(m.a(x).relu()) + F.avg_pool2d(m.c(x), 3, 1, 1),
        [("projection", "avg_pool2d", "b")],
    ),
    "equal branches": (lambda m, x: m.a(x) + m.b(x), [("merge", "b", "a")]),
    "a skip with an activation": (lambda m, x: m.b(m.a(x)) + m.c(x).relu(), [("merge", "relu", "b")]),
    "the slice of a whole": (lambda m, x: m.a(x)[:, :2] + x[:, 2:], [("identity", "slice_2", "slice_1")]),
    "another slice of the fork": (
        lambda m, x: F.conv2d(x[:, :2], m.a.weight[:2, :2], padding=1) + x[:, 2:],
        [("merge", "slice_2", "conv2d")],
    ),
    "rotary": (
        lambda m, x: x * m.gamma + torch.cat([-x[:, 2:], x[:, :2]], 1) * m.gamma,
        [("merge", "mul_1", "mul")],
    ),
    "with a constant": (lambda m, x: m.a(x) + m.gamma, []),
    "with a number": (lambda m, x: m.a(x) + 1, []),
    "nested": (
        lambda m, x: (lambda h: x + (h + m.b(h)))(m.a(x)),
        [("identity", "a", "b"), ("identity", "x", "add")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds(name):
    function, expected = CASES[name]
    assert joins(function) == expected


def test_branches_of_different_inputs_have_no_fork():
    class Two(nn.Module):
        def forward(self, a, b):
            return a.relu() + b

    (join,) = fxlrp.compile(Two().eval(), "conserving", start=ones).joins
    assert (join.kind, join.fork) == ("merge", None)
