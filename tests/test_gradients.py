"""The gradient as a rule: for operations of every kind it is what autograd computes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_unchanged, snapshot
from hypothesis import given
from hypothesis_profiles import examples
from nets import RandomNet
from strategies import net_plans, token_net_plans
from token_nets import (
    FEEDS,
    MIXERS,
    NORMS,
    WIDTH,
    AcrossChannels,
    Block,
    Crossed,
    RandomTokens,
    Rotary,
    SpelledRMSNorm,
    TokenBlockPlan,
    TokenNetPlan,
    Tokens,
)
from torch import nn

import fxlrp
from fxlrp.rules import Gradient

DOUBLE = torch.float64
_BACK = Gradient()
GRADIENT = fxlrp.Preset(
    "gradient", linear=_BACK, selection=_BACK, split=_BACK, gate=_BACK, product=_BACK, recurrent=_BACK, norm=_BACK,
    batch_norm=_BACK, softmax=_BACK, pointwise=_BACK,
)  # fmt: skip


def weights_of(output):
    """Any start: one number for each element of the output."""
    return torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)


def assert_is_the_gradient(model, *inputs, output=None, **options):
    model = model.double().eval()
    before = snapshot(model, *inputs)
    options = {"start": lambda value, target: weights_of(value), "output": output, **options}
    explainer = fxlrp.compile(model, GRADIENT, **options)
    found = explainer(*inputs).by_input.values()
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = model(*leaves) if output is None else model(*leaves)[output]
    expected = torch.autograd.grad(result, leaves, weights_of(result), materialize_grads=True)
    for share, gradient in zip(found, expected, strict=True):
        assert_close(share, gradient, 1e-11)
    assert_unchanged(before, snapshot(model, *inputs))
    ledger = explainer.ledger(*inputs)
    assert (ledger.error.abs() <= 1e-9 * (1 + ledger.start.abs())).all()


class Function(nn.Module):
    """A function of an image, and layers that it may use."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.bn, self.gn, self.norm = nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, affine=True)
        self.layer_norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)
        self.gamma = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x):
        return self.function(self, x)


FUNCTIONS = {
    "join": lambda m, x: x + m.a(x),
    "difference": lambda m, x: m.a(x) - 3 * x,
    "join that broadcasts": lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True),
    "scaled join": lambda m, x: torch.add(m.a(x), x, alpha=-2),
    "layer scale": lambda m, x: x + m.gamma * m.a(x),
    "gate": lambda m, x: x * torch.sigmoid(m.b(x)),
    "squeeze": lambda m, x: x * torch.sigmoid(m.b(F.adaptive_avg_pool2d(x, 1))),
    "product": lambda m, x: m.a(x) * m.b(x),
    "quotient": lambda m, x: m.a(x) / (1 + m.b(x).square()),
    "quotient of a constant": lambda m, x: 1 / (1 + x.exp()),
    "activations": lambda m, x: F.gelu(x) + F.silu(x) + F.elu(x) + F.leaky_relu(x, 0.2) + F.softplus(x) + x.tanh(),
    "clipped": lambda m, x: F.relu6(4 * m.a(x)) + F.hardtanh(x) + F.hardswish(x) + x.clamp(-0.5, 0.5),
    "powers": lambda m, x: x.square() + x.abs().sqrt() + (x.abs() + 1).log() + x**3 + x.abs().rsqrt(),
    "larger of two": lambda m, x: torch.maximum(m.a(x), m.b(x)) + torch.minimum(x, m.b(x)),
    "softmax": lambda m, x: m.a(x).softmax(1) + m.b(x).log_softmax(-1),
    "attention of pixels": lambda m, x: (m.a(x).flatten(2).mT @ m.b(x).flatten(2)).softmax(-1) @ x.flatten(2).mT,
    "einsum": lambda m, x: torch.einsum("bchw,bchv->bcwv", m.a(x), m.b(x)),
    "max pool": lambda m, x: F.max_pool2d(m.a(x), 3, 2, 1),
    "adaptive max pool": lambda m, x: F.adaptive_max_pool2d(x, (2, 3)),
    "largest": lambda m, x: m.a(x).amax((2, 3)),
    "largest along an axis": lambda m, x: m.a(x).max(dim=2).values,
    "average pool": lambda m, x: F.avg_pool2d(m.a(x), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive average pool": lambda m, x: F.adaptive_avg_pool2d(x, (4, 5)),
    "resized": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear") + m.up(x),
    "resized, bicubic": lambda m, x: F.interpolate(x, size=(9, 4), mode="bicubic"),
    "sums": lambda m, x: x.mean((2, 3)) + m.a(x).sum((2, 3)),
    "statistics": lambda m, x: x.flatten(2).norm(dim=2) + x.var((2, 3)) + x.std((2, 3)) + x.logsumexp((2, 3)),
    "norm of another order": lambda m, x: m.a(x).norm(p=3, dim=1),
    "running sum": lambda m, x: m.a(x).cumsum(2),
    "concatenation": lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1),
    "stack": lambda m, x: torch.stack([m.a(x), x], 2),
    "parts": lambda m, x: x[:, :, ::2, 1:] + m.a(x)[:, :, 1::2, :-1],
    "chunks": lambda m, x: torch.add(*m.a(x).chunk(2, dim=3)),
    "padded": lambda m, x: m.a(F.pad(x, (1, 0, 2, 1))) + m.a(F.pad(x, (1, 0, 2, 1), value=2.0)),
    "padded by itself": lambda m, x: m.b(F.pad(x, (1, 2, 1, 1), mode="reflect")),
    "padded around": lambda m, x: m.b(F.pad(x, (1, 2, 1, 1), mode="replicate")),
    "moved": lambda m, x: m.a(x).permute(0, 2, 3, 1).flip(1).roll(2, 2).reshape(x.shape[0], -1),
    "pixel shuffle": lambda m, x: F.pixel_unshuffle(m.a(x), 2),
    "expanded": lambda m, x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1).repeat(1, 1, 2, 1),
    "batch norm": lambda m, x: m.bn(m.a(x)),
    "batch norm first": lambda m, x: m.a(m.bn(x)),
    "group norm": lambda m, x: m.gn(m.a(x)),
    "instance norm": lambda m, x: m.norm(m.a(x)),
    "layer norm": lambda m, x: m.layer_norm(m.fc(x)),
    "response norm": lambda m, x: F.local_response_norm(m.a(x), 3),
    "unit length": lambda m, x: F.normalize(m.fc(x), dim=-1),
    "masked": lambda m, x: x.masked_fill(torch.ones(6, 6, dtype=torch.bool).tril(), 0.5),
    "chosen": lambda m, x: torch.where(x > 0, m.a(x), m.b(x)),
    "one layer, twice": lambda m, x: m.a(F.relu(m.a(x))),
    "in place": lambda m, x: m.a(x).mul_(2).add_(x).relu_(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relevance_of_an_operation_is_the_gradient(name):
    model = Function(FUNCTIONS[name]).eval()
    with torch.no_grad():
        model.bn.running_mean.normal_(), model.bn.running_var.uniform_(0.5, 2), model.bn.weight.normal_()
    assert_is_the_gradient(model, torch.randn(2, 3, 6, 6, dtype=DOUBLE))


BLOCKS = {
    **{f"mixer: {name}": SimpleNamespace(mixer=name) for name in MIXERS},
    **{f"feed: {name}": SimpleNamespace(feed=name) for name in FEEDS},
    **{f"norm: {name}": SimpleNamespace(norm=name) for name in NORMS},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_relevance_of_a_transformer_is_the_gradient(name):
    model = RandomTokens(TokenNetPlan([TokenBlockPlan(**vars(BLOCKS[name]))], tokens=1))
    assert_is_the_gradient(model, torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE))


@pytest.mark.parametrize("mixer", [Rotary, AcrossChannels])
def test_relevance_of_other_attentions_is_the_gradient(mixer):
    model = Tokens(Block(mixer(), norm=SpelledRMSNorm))
    assert_is_the_gradient(model, torch.randn(2, 6, WIDTH, dtype=DOUBLE))


def test_relevance_of_two_inputs_is_the_gradient():
    x, memory = torch.randn(2, 3, WIDTH, dtype=DOUBLE), torch.randn(2, 5, WIDTH, dtype=DOUBLE)
    assert_is_the_gradient(Crossed(batch_first=True), x, memory, output=0)


class States(nn.Module):
    """All that a recurrent layer returns."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.rnn = kind(4, 5, **options)

    def forward(self, x):
        steps, final = self.rnn(x)
        final = final if isinstance(final, tuple) else (final,)
        return torch.cat([steps.flatten(1), *(state.transpose(0, 1).flatten(1) for state in final)], dim=1)


@pytest.mark.parametrize("options", [
    {}, {"bidirectional": True}, {"num_layers": 2}, {"bias": False}, {"proj_size": 3},
    {"kind": nn.GRU, "bidirectional": True}, {"kind": nn.RNN},
], ids=str)  # fmt: skip
def test_relevance_of_a_recurrent_layer_is_the_gradient(options):
    assert_is_the_gradient(States(batch_first=True, **options), torch.randn(3, 4, 4, dtype=DOUBLE))


@examples(fast=8, slow=100)
@given(net_plans())
def test_relevance_of_random_residual_networks_is_the_gradient(plan):
    torch.manual_seed(0)
    for block in plan.blocks:  # autograd itself has nothing to go back by where an add overwrites a ReLU's result
        block.inplace = False
        if block.nested is not None:
            block.nested.inplace = False
    model = RandomNet(plan)
    assert_is_the_gradient(model, torch.randn(2, 3, 12, 12, dtype=DOUBLE))


@examples(fast=8, slow=100)
@given(token_net_plans())
def test_relevance_of_random_networks_of_tokens_is_the_gradient(plan):
    torch.manual_seed(0)
    model = RandomTokens(plan)
    assert_is_the_gradient(model, torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE))


# Guided by ReLUs -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["guided_backprop", "deconvnet"])
def test_at_relus_the_gradient_is_cut(preset):
    """Against the same rule as a function of autograd."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient.clamp(min=0) * ((x > 0) if preset == "guided_backprop" else 1)

    class Net(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.relu, self.a, self.b = relu, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.bn, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x):
            x = self.relu(self.a(x))
            x = self.relu(x + F.max_pool2d(self.bn(self.b(x)), 3, 1, 1))
            return self.fc(F.gelu(x).mean((2, 3)))

    model, cut = Net(F.relu).double().eval(), Net(Cut.apply).double().eval()
    cut.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE, requires_grad=True)
    output = cut(x)
    (expected,) = torch.autograd.grad(output, x, weights_of(output))
    found = fxlrp.compile(model, preset, start=lambda value, target: weights_of(value))(x).relevance
    assert_close(found, expected, 1e-12)
