"""Networks that give every pass of the optimiser something to do."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from nets import BlockPlan, NetPlan, RandomNet
from strategies import net_plans
from token_nets import WIDTH, Attention, Block, Fused, RandomTokens, Tokens
from torch import nn


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


def network_for(preset, dtype=torch.float64):
    """A network that a preset is meant for, and inputs for it."""
    return (attention if preset == "attnlrp" else tour)(dtype)


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


@st.composite
def image_net_plans(draw):
    """Random residual graphs whose max pools, if any, the released code of Otsuki et al. takes."""
    plan = draw(net_plans())
    return replace(plan, pool="average") if plan.pool == "max" else plan


def random_net(plan, seed=0, dtype=torch.float64, zeros=False):
    """The residual network of a plan, and two images, of which the second may be all zero."""
    torch.manual_seed(seed)
    model, x = RandomNet(plan).to(dtype).eval(), torch.randn(2, 3, 12, 12, dtype=dtype)
    if zeros:
        x[1] = 0
    return model, x


def random_tokens(plan, seed=0):
    """The network of tokens of a plan, and two inputs for it."""
    torch.manual_seed(seed)
    model = RandomTokens(plan).double().eval()
    return model, torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=torch.float64)


SMALL = NetPlan([BlockPlan(squeeze=True), BlockPlan(skip="projection", stride=2, activation="silu", bias=True)])
"""A residual network for where any will do."""


def weight_shapes(model):
    """The shapes of all parameters that are no vectors."""
    return {parameter.shape for parameter in model.parameters() if parameter.dim() > 1}
