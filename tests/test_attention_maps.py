"""Maps from attention weights, which evaluations of transformers compare relevance with."""

import pytest
import torch
import torch.nn.functional as F
from token_nets import WIDTH, Attention, Fused
from torch import nn

from examples.evaluation.attention_maps import AttentionWeights, generic_attention, rollout
from fxlrp.errors import MethodError

PATCH, CLASSES, ROWS, COLUMNS = 4, 3, 2, 3


class SmallTransformer(nn.Module):
    """Two residual attentions over a class token and six patches, with weights that can be listed."""

    def __init__(self, attention=Fused):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.ModuleList(attention() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return self.head(tokens[:, 0])


class Listing(Attention):
    """Attention spelled out, which keeps its weights and their gradient."""

    def mix(self, q, k, v):
        self.weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        self.weights.retain_grad()
        return self.weights @ v


@pytest.fixture
def models():
    torch.manual_seed(0)
    fused, listing = SmallTransformer().double(), SmallTransformer(Listing).double()
    listing.load_state_dict(fused.state_dict())
    return fused.requires_grad_(False), listing


@pytest.fixture
def images():
    return torch.randn(2, 3, ROWS * PATCH, COLUMNS * PATCH, dtype=torch.float64)


TARGETS = torch.tensor([2, 0])


def by_token(maps):
    return F.avg_pool2d(maps, PATCH, divisor_override=1).flatten(1)


def test_weights_are_kept_and_the_answer_stays(models, images):
    fused, listing = models
    with AttentionWeights() as kept:
        seen = fused(images)
    torch.testing.assert_close(seen, fused(images))
    listing(images)
    torch.testing.assert_close(kept.weights, [layer.weights for layer in listing.layers])


def test_rollout_is_the_product_of_halved_layers(models, images):
    fused, listing = models
    listing(images)
    one = torch.eye(1 + ROWS * COLUMNS, dtype=torch.float64)
    first, second = ((layer.weights.mean(1) + one) / 2 for layer in listing.layers)
    maps = rollout(fused)(images, TARGETS)
    assert maps.shape == (2, ROWS * PATCH, COLUMNS * PATCH)
    torch.testing.assert_close(by_token(maps), (second @ first)[:, 0, 1:])
    torch.testing.assert_close(maps, rollout(fused)(images, 1 - TARGETS.clamp(max=1)))  # it knows no class


def published(listing, images, start):
    """The rule for self-attention as the paper writes it, item by item and head by head."""
    rows = []
    for number, image in enumerate(images):
        listing.zero_grad()
        start(listing(image[None])[0], int(TARGETS[number])).backward()
        relevance = torch.eye(1 + ROWS * COLUMNS, dtype=torch.float64)
        for layer in listing.layers:
            heads = [(layer.weights.grad[0, n] * layer.weights[0, n]).clamp(min=0) for n in range(layer.heads)]
            relevance = relevance + sum(heads) / len(heads) @ relevance
        rows.append(relevance[0, 1:].detach())
    return torch.stack(rows)


@pytest.mark.parametrize("log_odds", [False, True])
def test_the_rule_is_the_published_one(models, images, log_odds):
    fused, listing = models

    def start(logits, target):
        others = torch.cat([logits[:target], logits[target + 1 :]])
        return logits[target] - others.logsumexp(0) if log_odds else logits[target]

    maps = generic_attention(fused, log_odds=log_odds)(images, TARGETS)
    assert not maps.requires_grad
    torch.testing.assert_close(by_token(maps), published(listing, images, start))


@pytest.mark.parametrize("method", [rollout, generic_attention])
def test_what_has_no_such_weights_is_told(method, images):
    masked = SmallTransformer(lambda: Fused(is_causal=True)).double()
    with pytest.raises(MethodError, match="no plain self-attention"):
        method(masked)(images, TARGETS)
    convolution = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(MethodError, match="nowhere"):
        method(convolution)(images, TARGETS)
