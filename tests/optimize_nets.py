"""What the tests of the optimiser share: networks that give every pass something to do, and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from checks import assert_close, tolerance
from hypothesis import strategies as st
from nets import BlockPlan, NetPlan
from strategies import net_plans
from token_nets import Attention, Block, Fused, Tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxlrp
from fxlrp.passes.optimize import NAMES

ALONE = {f"{name} alone": (name,) for name in NAMES}
LEFT_OUT = {f"all but {name}": tuple(other for other in NAMES if other != name) for name in NAMES}
CHOICES = {**ALONE, **LEFT_OUT, "all": NAMES, "the default": True}
"""What is asked for of the optimiser."""

PRESETS = {
    "conserving": "conserving", "otsuki2024": "otsuki2024", "epsilon_plus": "epsilon_plus",
    "epsilon_gamma_box": fxlrp.presets.epsilon_gamma_box(-8, 8),  # a box must hold the input
}  # fmt: skip


def chosen_preset(preset):
    """A preset by its name here, or one as it is."""
    return PRESETS.get(preset, preset) if isinstance(preset, str) else preset


def explained(model, *inputs, optimize, preset="conserving", **options):
    """The explanation that is optimised as asked."""
    return fxlrp.compile(model, chosen_preset(preset), optimize=optimize, **options)(*inputs)


def assert_same(explanation, plain, limit=None):
    """Relevance, start and checkpoints are those of the graph as the rules wrote it, to rounding."""
    for name, relevance in plain.by_input.items():
        limit = limit or tolerance(relevance.dtype)
        assert_close(explanation.by_input[name], relevance, limit)
    # What starts may sum to zero.
    largest = max(relevance.abs().max() for relevance in (plain.start, *plain.by_input.values()))
    assert ((explanation.start - plain.start).abs() <= limit * largest).all()
    assert explanation.checkpoints.keys() == plain.checkpoints.keys()
    for name, relevance in plain.checkpoints.items():
        assert_close(explanation.checkpoints[name], relevance, limit)


def assert_changes_nothing(model, *inputs, optimize, preset="conserving", limit=None, **options):
    """What is explained is the same with and without; also at the second call, which runs on what the first kept."""
    plain = explained(model, *inputs, optimize=False, preset=preset, **options)
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=optimize, **options)
    for _ in range(2):
        assert_same(explainer(*inputs), plain, limit)
    return explainer


def seeded_weights(model):
    """Statistics and scales of batch norm at random, and eval mode."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias, std=0.3)
    return model.eval()


class Tour(nn.Module):
    """Strided, grouped, dilated and transposed convolutions, a layer that is called twice, norms, both joins."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width)
        self.twice, self.behind = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down, self.project = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.Conv2d(width, 2 * width, 1, 2, bias=False)
        self.grouped = nn.Conv2d(2 * width, 2 * width, (1, 3), padding=(0, 2), dilation=(1, 2), groups=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = F.relu(x + self.behind(self.twice(F.silu(self.twice(x)))))
        x = F.relu(self.down(x)) + self.project(x)
        x = F.relu(self.up(self.grouped(x)))
        return self.head(x.mean((2, 3)))


def tour(dtype=torch.float64):
    """The tour, and images of even size, one of them all zero."""
    torch.manual_seed(0)
    model = seeded_weights(Tour()).to(dtype)
    x = torch.randn(3, 3, 16, 16, dtype=dtype)
    x[1] = 0
    return model, x


def attention(dtype=torch.float64):
    """A network of tokens with both spellings of attention."""
    torch.manual_seed(0)
    model = Tokens(Block(Attention()), Block(Fused()), token=True).to(dtype).eval()
    return model, torch.randn(2, 6, 8, dtype=dtype)


class Signed(nn.Module):
    """A layer that reads values of either sign, one that reads what is never negative, and an average pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.signed, self.known = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.signed(F.gelu(self.norm(self.stem(x))))
        return self.head(F.avg_pool2d(F.relu(self.known(F.relu(x))), 2).flatten(2).mean(2))


def signed(dtype=torch.float64):
    """The network above and images for it."""
    torch.manual_seed(0)
    return seeded_weights(Signed()).to(dtype), torch.randn(3, 3, 8, 8, dtype=dtype)


# Random stacks of convolutions ----------------------------------------------------------------------

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "none": nn.Identity}


@dataclass
class LayerPlan:
    """A convolution, one entry an axis; ``groups`` 0: depthwise."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = True
    transposed: bool = False
    norm: bool = False
    activation: str = "relu"


@dataclass
class StackPlan:
    """Convolutions over images (batch, 3, *size), one after the other."""

    size: tuple[int, ...]
    layers: list[LayerPlan]
    batch: int = 2
    zeros: bool = False


class Stack(nn.Module):
    """A stack of convolutions after a :class:`StackPlan`, and a linear head; what would leave no pixel is left out."""

    def __init__(self, plan):
        super().__init__()
        layers, width, size = [], 3, plan.size
        for layer in plan.layers:
            size, convolution, out = self._made(layer, width, size)
            if convolution is None:
                continue
            layers += [convolution, _NORM[len(size)](out)] if layer.norm else [convolution]
            layers.append(_ACTIVATIONS[layer.activation]())
            width = out
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 5)

    @staticmethod
    def _made(layer, width, size):
        dims, groups = len(size), layer.groups or width
        out = {0: 2 * width, 1: 6}.get(layer.groups, 4)
        if width % groups or out % groups:
            groups = 1
        if layer.transposed:
            kernel = layer.kernel
            padding = tuple(min(p, d * (k - 1)) for p, k, d in zip(layer.padding, kernel, layer.dilation, strict=True))
            after = tuple(
                (n - 1) * s - 2 * p + d * (k - 1) + 1
                for n, k, s, p, d in zip(size, kernel, layer.stride, padding, layer.dilation, strict=True)
            )
            if max(after) > 24 or min(after) < 1:
                return size, None, width
            made = _TRANSPOSED[dims](
                width, out, kernel, layer.stride, padding, 0, groups, layer.bias, layer.dilation
            )
            return after, made, out
        after = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
        )
        if min(after) < 1:
            return size, None, width
        made = _CONVOLUTION[dims](
            width, out, layer.kernel, layer.stride, layer.padding, layer.dilation, groups, layer.bias
        )
        return after, made, out

    def forward(self, x):
        return self.head(self.layers(x).flatten(2).mean(2))


def stack(plan, dtype=torch.float64, seed=0):
    """The stack of a plan and images for it."""
    torch.manual_seed(seed)
    model = seeded_weights(Stack(plan)).to(dtype)
    x = torch.randn(plan.batch, 3, *plan.size, dtype=dtype)
    if plan.zeros:
        x[-1] = 0
    return model, x


@st.composite
def stack_plans(draw):
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    square = draw(st.booleans())

    def axes(low, high):
        if square:
            return (draw(st.integers(low, high)),) * dims
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    def layer(transposed):
        kernel, dilation = axes(1, 7 if dims < 3 else 4), draw(st.sampled_from([(1,) * dims, (1,) * dims, (2,) * dims]))
        larger = draw(st.sampled_from([0, 0, 0, 2]))  # padding that whole windows lie in
        return LayerPlan(
            kernel, axes(1, 4), tuple(p + larger * k for p, k in zip(axes(0, 3), kernel, strict=True)), dilation,
            groups=draw(st.sampled_from([1, 1, 2, 0])), bias=draw(st.booleans()), transposed=transposed,
            norm=draw(st.booleans()), activation=draw(st.sampled_from(sorted(_ACTIVATIONS))),
        )  # fmt: skip

    count = draw(st.integers(1, 3))
    return StackPlan(
        axes(7, 13 if dims < 3 else 8), [layer(transposed=draw(st.integers(0, 3)) == 0) for _ in range(count)],
        batch=draw(st.integers(1, 3)), zeros=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def image_net_plans(draw):
    """Random residual graphs whose max pools, if any, the released code of Otsuki et al. takes."""
    plan = draw(net_plans())
    return replace(plan, pool="average") if plan.pool == "max" else plan


SMALL = NetPlan([BlockPlan(squeeze=True), BlockPlan(skip="projection", stride=2, activation="silu", bias=True)])
"""A residual network for where any will do."""


# What runs ------------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Counts the calls of ATen operations, with the shape of their first argument: ``(name, shape)``."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        first = args[0] if args else None
        self.seen.append((function.overloadpacket.__name__, first.shape if isinstance(first, torch.Tensor) else None))
        return function(*args, **(kwargs or {}))

    def of(self, *names, shapes=None):
        """The shapes that these operations were called with, of ``shapes`` alone where they are given."""
        return [shape for name, shape in self.seen if name in names and (shapes is None or shape in shapes)]


def calls(function, *arguments, **options):
    """The operations that a call runs."""
    with Calls() as seen:
        function(*arguments, **options)
    return seen


def weight_shapes(model):
    """The shapes of all parameters that are no vectors."""
    return {parameter.shape for parameter in model.parameters() if parameter.dim() > 1}
