"""Networks of tokens that the tests explain: transformers in their many spellings, and their relatives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, CLASSES = 8, 2, 5


class Attention(nn.Module):
    """Self-attention as timm spells it; subclasses say how queries, keys and values are mixed."""

    def __init__(self, width=WIDTH, heads=HEADS):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(self.mix(q, k, v).transpose(1, 2).reshape(b, n, c))

    def mix(self, q, k, v):
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return weights @ v


class Fused(Attention):
    """Through torch's own function, with whatever it takes."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class Einstein(Attention):
    def mix(self, q, k, v):
        weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weights, v)


class Linear(Attention):
    """Kernels that are never negative, and a divisor that normalises them."""

    def mix(self, q, k, v):
        q, k = F.relu(q) + 1e-3, F.relu(k) + 1e-3
        summed = k.transpose(-2, -1) @ v
        return (q @ summed) / (q * k.sum(dim=2, keepdim=True)).sum(-1, keepdim=True)


class LinearByWeights(Attention):
    """The same kernels, the weights computed one by one."""

    def mix(self, q, k, v):
        weights = F.relu(q) @ F.relu(k).transpose(-2, -1) + 1e-3
        return (weights / weights.sum(-1, keepdim=True)) @ v


class Rotary(Attention):
    """Rotary position embeddings on queries and keys."""

    def mix(self, q, k, v):
        angles = torch.arange(6, dtype=q.dtype)[:, None] / 10.0 ** torch.arange(2)
        angles = torch.cat([angles, angles], -1)
        q, k = (x * angles.cos() + rotated(x) * angles.sin() for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rotated(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class Normalised(Attention):
    """Queries and keys of unit length, with a learned temperature (as Swin V2 and XCiT have it)."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 0.5))

    def mix(self, q, k, v):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (scores * self.temperature.exp()).softmax(-1) @ v


class AcrossChannels(Attention):
    """Cross-covariance attention: features look at features."""

    def mix(self, q, k, v):
        weights = (F.normalize(q, dim=2).transpose(-2, -1) @ F.normalize(k, dim=2)).softmax(-1)
        return (weights @ v.transpose(-2, -1)).transpose(-2, -1)


class Grouped(nn.Module):
    """Grouped-query attention: two heads of queries share one of keys and values."""

    def __init__(self, *, repeat):
        super().__init__()
        self.repeat = repeat
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (4, 2)).transpose(1, 2).chunk(2, dim=1)
        if self.repeat:
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.repeat)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Windows(Attention):
    """Attention in windows of 2 × 2 over a map of 4 × 4, perhaps shifted, with relative positions (Swin)."""

    def __init__(self, *, shift=0):
        super().__init__()
        self.shift = shift
        self.table = nn.Parameter(torch.randn(9, HEADS))
        where = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        offset = where[:, :, None] - where[:, None] + 1
        self.register_buffer("index", offset[0] * 3 + offset[1])
        region = torch.zeros(4, 4)
        for part, (rows, columns) in enumerate([(slice(3, None), slice(0, 3)), (slice(0, 3), slice(3, None))]):
            region[rows, columns] = part + 1
        region[3:, 3:] = 3
        windows = region.view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
        hidden = windows[:, None] != windows[:, :, None]
        self.register_buffer("mask", torch.zeros(4, 4, 4).masked_fill(hidden, -100.0))

    def forward(self, x):
        b, n, c = x.shape
        x = x.view(b, 4, 4, c)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = x.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        x = super().forward(x)
        x = x.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, c)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return x.reshape(b, n, c)

    def mix(self, q, k, v):
        bias = self.table[self.index.view(-1)].view(4, 4, HEADS).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) + bias.unsqueeze(0)
        if self.shift:
            scores = scores.view(-1, 4, HEADS, 4, 4) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, HEADS, 4, 4)
        return scores.softmax(-1) @ v


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` of one sequence over itself."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x):
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        x, _ = self.attention(x, x, x, need_weights=False)
        return x if self.attention.batch_first else x.transpose(0, 1)


class Perceptron(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Gated(nn.Module):
    """A gated linear unit."""

    def __init__(self, gate):
        super().__init__()
        self.gate = gate
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.down(self.gate(self.up(x)))


def swiglu(x):
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def geglu(x):
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class SpelledRMSNorm(nn.Module):
    """RMS norm as language models spell it."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SpelledLayerNorm(nn.Module):
    """Layer norm over the channels of a map, as ConvNeXt and Segment Anything spell it."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-6) * self.weight + self.bias


class ResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x):
        g = torch.norm(x, p=2, dim=1, keepdim=True)
        n = g / (g.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * n) + self.beta + x


class Squeeze(nn.Module):
    """Squeeze-and-excitation over tokens."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.reduce, self.expand = nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, x):
        return x * self.expand(F.relu(self.reduce(x.mean(1, keepdim=True)))).sigmoid()


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, mixer, norm=nn.LayerNorm, feed=None):
        super().__init__()
        self.norm1, self.mixer, self.norm2 = norm(WIDTH), mixer, norm(WIDTH)
        self.feed = Perceptron() if feed is None else feed

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Tokens(nn.Module):
    """Blocks over (batch, tokens, features), perhaps behind a class token, and a linear head."""

    def __init__(self, *blocks, token=False):
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if token else None
        self.position = nn.Parameter(torch.randn(1, 6 + token, WIDTH)) if token else None
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        x = self.norm(self.blocks(x))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


class Crossed(nn.Module):
    """A sequence that looks at another one."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, memory):
        if not self.attention.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        mixed, weights = self.attention(x, memory, memory)
        return self.head(mixed.mean(1 if self.attention.batch_first else 0)), weights


# Random networks of tokens ------------------------------------------------------------------

MIXERS = {
    "softmax": Attention, "fused": Fused, "causal": lambda: Fused(is_causal=True), "einsum": Einstein,
    "linear": Linear, "by weights": LinearByWeights, "unit": Normalised, "channels": AcrossChannels,
    "grouped": lambda: Grouped(repeat=False), "module": lambda: Multihead(batch_first=True), "sequence": Multihead,
}  # fmt: skip
FEEDS = {
    "perceptron": Perceptron, "swiglu": lambda: Gated(swiglu), "glu": lambda: Gated(F.glu), "squeeze": Squeeze,
    "response": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ResponseNorm()),
}  # fmt: skip
NORMS = {
    "layer": nn.LayerNorm, "rms": nn.RMSNorm, "spelled rms": SpelledRMSNorm, "spelled layer": SpelledLayerNorm,
    "none": lambda width: nn.Identity(),
}  # fmt: skip


@dataclass
class TokenBlockPlan:
    """How a random block of tokens is built."""

    mixer: str = "fused"
    feed: str = "perceptron"
    norm: str = "layer"
    skips: bool = True
    post_norm: bool = False
    scaled: bool = False
    flipped: bool = False
    windows: int = 1
    shift: int = 0


@dataclass
class TokenNetPlan:
    """How a random network of tokens is built."""

    blocks: list[TokenBlockPlan] = field(default_factory=list)
    tokens: int = 0
    sequence_first: bool = False
    pool: str = "mean"  # mean, first, flat, largest


class PlannedBlock(nn.Module):
    """A block after a :class:`TokenBlockPlan`, perhaps in windows of the sequence, perhaps shifted."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.norm1, self.norm2 = (NORMS[plan.norm](WIDTH) for _ in range(2))
        self.mixer, self.feed = MIXERS[plan.mixer](), FEEDS[plan.feed]()
        self.scale = nn.Parameter(torch.randn(WIDTH)) if plan.scaled else None

    def forward(self, x):
        x = self.branch(x, self.norm1, self.windowed)
        return self.branch(x, self.norm2, self.feed)

    def branch(self, x, norm, mix):
        y = mix(x if self.plan.post_norm else norm(x))
        if self.scale is not None:
            y = y * self.scale
        if self.plan.skips:
            y = y + x if self.plan.flipped else x + y
        return norm(y) if self.plan.post_norm else y

    def windowed(self, x):
        plan = self.plan
        if plan.windows == 1:
            return self.mixer(x)
        b, n, c = x.shape
        if plan.shift:
            x = torch.roll(x, -plan.shift, 1)
        # Every window takes each n-th token: items are interleaved before they are folded into the batch.
        x = x.view(b, n // plan.windows, plan.windows, c).transpose(1, 2).reshape(-1, n // plan.windows, c)
        x = self.mixer(x)
        x = x.view(b, plan.windows, n // plan.windows, c).transpose(1, 2).reshape(b, n, c)
        return torch.roll(x, plan.shift, 1) if plan.shift else x


class RandomTokens(nn.Module):
    """Embedded features, learned tokens, random blocks and a head: (batch, tokens, features) to classes."""

    LENGTH = 8

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.tokens = nn.Parameter(torch.randn(1, plan.tokens, WIDTH)) if plan.tokens else None
        self.blocks = nn.Sequential(*map(PlannedBlock, plan.blocks))
        self.head = nn.Linear(WIDTH * (self.LENGTH if plan.pool == "flat" else 1), CLASSES)

    def forward(self, x):
        x = self.embed(x)
        if self.tokens is not None:
            x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x[:, self.plan.tokens :]], dim=1)
        if self.plan.sequence_first:
            x = x.transpose(0, 1)
            x = (x + x.mean(0, keepdim=True)).permute(1, 0, 2)
        x = self.blocks(x)
        if self.plan.pool == "flat":
            return self.head(x.flatten(1))
        pools = {"mean": lambda: x.mean(1), "first": lambda: x[:, 0], "largest": lambda: x.amax(1)}
        return self.head(pools[self.plan.pool]())
