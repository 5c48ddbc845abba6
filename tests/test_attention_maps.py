"""Maps from attention weights, which evaluations of transformers compare relevance with."""

import pytest
import torch
import torch.nn.functional as F
from token_nets import HEADS, WIDTH, Attention, Fused, Perceptron
from torch import nn

import fxlrp
from examples.evaluation.attention_maps import generic_attention, rollout, transformer_attribution
from examples.evaluation.attention_relevance import RelevanceOfWeights, of_linear, of_product, of_sum
from examples.evaluation.attention_weights import AttentionWeights
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


@pytest.mark.parametrize("method", [rollout, generic_attention, transformer_attribution])
def test_what_has_no_such_weights_is_told(method, images):
    masked = SmallTransformer(lambda: Fused(is_causal=True)).double()
    with pytest.raises(MethodError, match="no plain self-attention"):
        method(masked)(images, TARGETS)
    convolution = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(MethodError, match="nowhere"):
        method(convolution)(images, TARGETS)


def test_rules_hand_on_what_they_receive():
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 5, 20).double()
    of_products, of_sums, of_layer = torch.randn(3, 5, 5), torch.randn(3, 5, 20), torch.randn(3, 5, 6)
    weight = torch.randn(6, 20).double()
    shares = {
        "product": (of_product(of_products, first @ second.mT, first, second.mT), of_products),
        "sum": (of_sum(of_sums, first + second, first, second), of_sums),
        "linear": (of_linear(of_layer, first @ weight.T, first, weight), of_layer),
    }
    for handed, received in shares.values():
        sums = sum(each.flatten(1).sum(1) for each in handed)
        torch.testing.assert_close(sums, received.double().flatten(1).sum(1), rtol=1e-6, atol=1e-6)
    halves = [each.flatten(1).sum(1) for each in shares["product"][0]]
    torch.testing.assert_close(*halves, rtol=1e-6, atol=1e-6)


def test_a_linear_layer_is_that_of_z_plus_that_absorbs():
    torch.manual_seed(0)
    layer, signal, start = nn.Linear(4, 6).double(), torch.randn(3, 4).double(), torch.rand(3, 6).double()
    preset = fxlrp.Preset("z⁺", linear=fxlrp.rules.ZPlus(vanishing="absorb"))
    explainer = fxlrp.compile(layer.eval(), preset, start=lambda output, target: start)
    (expected,) = of_linear(start, layer(signal), signal, layer.weight.detach())
    torch.testing.assert_close(explainer(signal, target=0).relevance, expected, rtol=1e-6, atol=1e-6)


def normed():
    """A branch of a transformer: norm, attention and perceptron in a row."""
    return nn.Sequential(nn.LayerNorm(WIDTH), Fused(), Perceptron())


def by_parts(relevance, function, *operands):
    """The relevance of operands by their contributions: x · ∂z/∂x · R / z, as the published code has it."""
    operands = [each.detach().requires_grad_() for each in operands]
    output = function(*operands)
    gradients = torch.autograd.grad(output, operands, relevance / output)
    return [each.detach() * gradient for each, gradient in zip(operands, gradients, strict=True)]


def through_linear(relevance, layer, signal):
    """Weight by weight."""
    contributions = (signal[..., None, :] * layer.weight).clamp(min=0)
    whole = contributions.sum(-1, keepdim=True).clamp(min=1e-30)  # none is positive: nothing is handed on
    return (contributions / whole * relevance[..., None]).sum(-2)


def relevance_of_weights(model, image, target):
    """Of one image, layer by layer, written out."""
    tokens = model.patches(image[None]).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.token, tokens], dim=1)
    kept = []
    for norm, attention, feed in model.layers:
        normed = norm(tokens)
        qkv = attention.qkv(normed).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].mT * qkv.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights @ qkv[2]).transpose(1, 2).flatten(2)
        hidden = feed[0](attention.proj(mixed))
        branch = feed[2](F.gelu(hidden))
        kept.append((normed, qkv, weights, mixed, attention.proj(mixed), hidden, branch, tokens))
        tokens = tokens + branch
    relevance = torch.zeros_like(tokens)
    relevance[:, 0] = through_linear(F.one_hot(torch.tensor([target]), CLASSES).double(), model.head, tokens[:, 0])
    found = []
    for (_, attention, feed), values in zip(reversed(model.layers), reversed(kept), strict=True):
        normed, qkv, weights, mixed, projected, hidden, branch, tokens = values
        skip, below = by_parts(relevance, torch.add, tokens, branch)
        whole, magnitude = relevance.sum(), skip.sum().abs() + below.sum().abs()
        skip, below = (each * (each.sum().abs() / magnitude * whole / each.sum()) for each in (skip, below))
        below = through_linear(below, feed[2], F.gelu(hidden))
        below = through_linear(below, feed[0], projected)
        below = through_linear(below, attention.proj, mixed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        of_weights, of_values = (each / 2 for each in by_parts(below, torch.matmul, weights, qkv[2]))
        found.append(of_weights)
        of_queries, of_keys = by_parts(of_weights, lambda q, k: q @ k.mT, qkv[0], qkv[1])
        parts = torch.stack([of_queries / 2, of_keys / 2, of_values]).permute(1, 3, 0, 2, 4).flatten(2)
        relevance = skip + through_linear(parts, attention.qkv, normed)
    return torch.cat(found[::-1]).detach()


def test_relevance_of_weights_is_that_of_the_published_rules(images):
    torch.manual_seed(0)
    model = SmallTransformer(normed).double().requires_grad_(False)
    with torch.enable_grad(), RelevanceOfWeights() as kept:
        logits = model(images.requires_grad_())
    torch.testing.assert_close(logits, model(images))
    found = torch.autograd.grad(logits, kept.weights, F.one_hot(TARGETS, CLASSES).double())
    for number, image in enumerate(images.detach()):
        of_image = torch.stack([each[number] for each in found])
        expected = relevance_of_weights(model, image, int(TARGETS[number]))
        torch.testing.assert_close(of_image, expected, rtol=1e-4, atol=1e-6)


def test_the_map_is_the_rollout_of_relevance_times_gradient(images):
    torch.manual_seed(0)
    model = SmallTransformer(normed).double().requires_grad_(False)
    with torch.enable_grad(), AttentionWeights() as kept:
        logits = model(images.requires_grad_())
    gradients = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), kept.weights)
    one = torch.eye(1 + ROWS * COLUMNS, dtype=torch.float64)
    rows = []
    for number, image in enumerate(images.detach()):
        product = one
        relevance = relevance_of_weights(model, image, int(TARGETS[number]))
        for each, gradient in zip(relevance, gradients, strict=True):
            product = (one + (each * gradient[number]).clamp(min=0).mean(0)) @ product
        rows.append(product[0, 1:])
    maps = transformer_attribution(model)(images.detach(), TARGETS)
    assert not maps.requires_grad
    torch.testing.assert_close(by_token(maps), torch.stack(rows), rtol=1e-4, atol=1e-6)


def test_a_function_without_a_rule_is_told(images):
    model = SmallTransformer(lambda: nn.Sequential(Fused(), nn.SiLU())).double()
    with pytest.raises(MethodError, match=r"no rule for .*silu"):
        transformer_attribution(model)(images, TARGETS)
