"""Transformers and their relatives, whole: what must hold of every explanation."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_explains
from token_nets import (
    CLASSES,
    HEADS,
    WIDTH,
    AcrossChannels,
    Attention,
    Block,
    Crossed,
    Einstein,
    Fused,
    Gated,
    Grouped,
    Linear,
    LinearByWeights,
    Multihead,
    Normalised,
    ResponseNorm,
    Rotary,
    SpelledLayerNorm,
    SpelledRMSNorm,
    Squeeze,
    Tokens,
    Windows,
    geglu,
    swiglu,
)
from torch import nn

import fxlrp

DOUBLE = torch.float64
ADDITIVE = torch.zeros(6, 6, dtype=DOUBLE).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(2), float("-inf"))

MIXERS = {
    "softmax of a matrix product": Attention,
    "one function": Fused,
    "causal": lambda: Fused(is_causal=True),
    "boolean mask": lambda: Fused(attn_mask=torch.ones(6, 6, dtype=torch.bool).tril(2)),
    "additive mask": lambda: Fused(attn_mask=ADDITIVE),
    "einsum": Einstein,
    "grouped heads": lambda: Grouped(repeat=False),
    "grouped heads, repeated": lambda: Grouped(repeat=True),
    "linear": Linear,
    "linear, by its weights": LinearByWeights,
    "rotary": Rotary,
    "unit queries and keys": Normalised,
    "features over features": AcrossChannels,
    "nn.MultiheadAttention": lambda: Multihead(batch_first=True),
    "nn.MultiheadAttention, sequence first": Multihead,
    "nn.MultiheadAttention without bias": lambda: Multihead(batch_first=True, bias=False),
}


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def double(model):
    """In float64 and eval mode, biases drawn at random too."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.double().eval()


@pytest.mark.parametrize("name", MIXERS)
def test_an_attention_is_explained(name):
    model = double(Tokens(Block(MIXERS[name]()), Block(MIXERS[name]())))
    explainer, _ = assert_explains(model, randn(3, 6, WIDTH))
    assert explainer.capture == "symbolic"


FEEDS = {
    "SwiGLU": lambda: Gated(swiglu),
    "GEGLU": lambda: Gated(geglu),
    "GLU": lambda: Gated(F.glu),
    "GLU module": lambda: Gated(nn.GLU()),
    "global response norm": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ResponseNorm()),
    "squeeze and excitation": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Squeeze()),
}
NORMS = {
    "RMS norm": nn.RMSNorm,
    "RMS norm spelled out": SpelledRMSNorm,
    "layer norm spelled out": SpelledLayerNorm,
    "no norm": lambda width: nn.Identity(),
}


@pytest.mark.parametrize("name", FEEDS)
def test_a_gated_feed_is_explained(name):
    explainer, _ = assert_explains(double(Tokens(Block(Fused(), feed=FEEDS[name]()))), randn(3, 6, WIDTH))
    assert explainer.capture == "symbolic"


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_explained(name):
    explainer, _ = assert_explains(double(Tokens(Block(Fused(), norm=NORMS[name]))), randn(3, 6, WIDTH))
    assert explainer.capture == "symbolic"


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_explained(shift):
    model = double(Tokens(Block(Windows(shift=0)), Block(Windows(shift=shift))))
    explainer, _ = assert_explains(model, randn(3, 16, WIDTH))
    assert explainer.capture == "symbolic"


def test_of_a_batch_in_windows_each_item_keeps_its_own():
    """The relevance of an item that is all zero stays its own, though all of it is rescaled."""
    model = double(Tokens(Block(Windows(shift=1))))
    x = randn(3, 16, WIDTH)
    x[1] = 0
    assert_conserves(fxlrp.compile(model, "conserving"), x)


def test_a_class_token_absorbs_its_part_and_the_ledger_says_so():
    model = double(Tokens(Block(Fused()), Block(Attention()), token=True))
    _, ledger = assert_explains(model, randn(3, 6, WIDTH), absorbs=("constant",))
    assert (ledger.absorbed["constant"] > 0).all()
    assert [row.node for row in ledger if row.reason] == ["cat"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_encoder_layer_is_explained(norm_first, batch_first):
    class Encoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, batch_first=batch_first, norm_first=norm_first
            )
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            x = self.layer(x) if batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
            return self.head(x[:, 0])

    assert_explains(double(Encoded()), randn(3, 6, WIDTH))


def test_torchs_own_decoder_is_explained():
    class Decoded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
            self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(WIDTH, CLASSES)

        def forward(self, x, memory):
            return self.head(self.decoder(x, memory).mean(1))

    assert_explains(double(Decoded()), randn(3, 6, WIDTH), randn(3, 4, WIDTH))


CROSSED = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "features of another width": {"batch_first": True, "kdim": 5, "vdim": 5},
    "features of another width, sequence first": {"kdim": 5, "vdim": 5},
}


@pytest.mark.parametrize("name", CROSSED)
def test_cross_attention_is_explained_through_its_values_alone(name):
    options = CROSSED[name]
    model = double(Crossed(**options))
    x, memory = randn(3, 6, WIDTH), randn(3, 4, options.get("kdim", WIDTH))
    explainer, _ = assert_explains(model, x, memory, output=0)
    relevance = explainer(x, memory).by_input
    assert not relevance["x"].any()
    assert relevance["memory"].any()


class Apart(nn.Module):
    """Queries, keys and values from inputs of their own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, query, key, value):
        return self.head(F.scaled_dot_product_attention(query, key, value).mean(1))


def test_only_values_receive_relevance_unless_the_rule_goes_through_the_weights():
    model, inputs = double(Apart()), (randn(2, 6, WIDTH), randn(2, 4, WIDTH), randn(2, 4, WIDTH))
    for preset, through_weights in (("conserving", False), ("cp_lrp", False), ("attnlrp", True)):
        query, key, value = fxlrp.compile(model, preset)(*inputs).relevance
        assert value.any()
        assert query.any() == key.any() == through_weights


def test_constant_values_absorb_all_that_picks_among_them():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.values, self.head = nn.Parameter(torch.randn(4, WIDTH)), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            values = self.values.expand(x.shape[0], -1, -1)
            return self.head(F.scaled_dot_product_attention(x, values, values).mean(1))

    model, x = double(Memory()), randn(2, 6, WIDTH)
    ledger = assert_conserves(fxlrp.compile(model, "conserving"), x, absorbs=("constant",))
    assert_close(ledger.absorbed["constant"], ledger.start)


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", MIXERS)
def test_the_attention_presets_account_for_all_relevance(name, preset):
    """They absorb in stabilisers and biases, and the ledger has every bit of it."""
    model = double(Tokens(Block(MIXERS[name](), norm=nn.RMSNorm)))
    explainer, x = fxlrp.compile(model, preset), randn(3, 6, WIDTH)
    ledger, explanation = explainer.ledger(x), explainer(x)
    assert torch.isfinite(explanation.relevance).all()
    received = torch.stack([row.received.abs() for row in ledger]).amax(0)
    for row in ledger:
        assert (row.error.abs() <= 1e-9 * received).all(), row.node
    alone = torch.cat([explainer(x[i : i + 1]).relevance for i in range(3)])
    assert_close(explanation.relevance, alone, 1e-8)


def test_weights_that_are_computed_from_parameters_are_constants():
    class Mixed(nn.Module):
        """A convolution whose kernel is a softmax over parameters."""

        def __init__(self):
            super().__init__()
            self.kernels, self.logits = nn.Parameter(torch.randn(2, 4, 3, 3, 3)), nn.Parameter(torch.randn(2))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            kernel = (self.logits.softmax(0).view(-1, 1, 1, 1, 1) * self.kernels).sum(0)
            return self.head(F.relu(F.conv2d(x, kernel - kernel.mean((1, 2, 3), keepdim=True), padding=1)).mean((2, 3)))

    assert_explains(double(Mixed()), randn(3, 3, 5, 5))


def test_a_kernel_that_depends_on_the_item_is_held_constant():
    class Dynamic(nn.Module):
        """Mixing weights over tokens that each item computes for itself (as in dynamic convolutions)."""

        def __init__(self):
            super().__init__()
            self.weigh, self.head = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            weights = self.weigh(x).softmax(-1)
            return self.head((weights @ x).mean(1))

    _, ledger = assert_explains(double(Dynamic()), randn(3, 6, WIDTH))
    assert "weigh" not in [row.node for row in ledger]


def test_a_model_that_works_sequence_first_inside_is_explained():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.position = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(6, 1, WIDTH))
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attention, self.feed = nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            x = self.embed(x).permute(1, 0, 2) + self.position
            y = self.norm1(x)
            x = x + self.attention(y, y, y)[0]
            x = x + F.relu(self.feed(self.norm2(x)))
            return self.head(x.mean(0))

    model, x = double(SequenceFirst()), randn(3, 6, WIDTH)
    explainer, _ = assert_explains(model, x)
    x[1] = 0
    assert_conserves(explainer, x)
    assert explainer.capture == "symbolic"


def test_a_mask_that_is_computed_from_integers_carries_no_signal():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.qkv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x, lengths):
            q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
            inside = torch.arange(6)[None] < lengths[:, None]
            mixed = F.scaled_dot_product_attention(q, k, v, inside[:, None, :])
            kept = mixed * inside[..., None]
            return self.head(kept.sum(1) / inside.sum(1, keepdim=True))

    model, x, lengths = double(Masked()), randn(3, 6, WIDTH), torch.tensor([6, 2, 4])
    explainer = fxlrp.compile(model, "conserving", example_inputs=(x, lengths))
    explanation = explainer(x, lengths)
    assert_close(explanation.output, model(x, lengths))
    assert_conserves(explainer, x, lengths)
    assert not explanation.by_input["lengths"].any()
    for item, length in enumerate(lengths):
        assert not explanation.by_input["x"][item, length:].any()
        assert explanation.by_input["x"][item, :length].any()


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("join", [True, False], ids=["sum", "gate"])
def test_one_value_an_item_beside_a_sequence_that_comes_first(swapped, join):
    """An operand of fewer axes is broadcast; where the batch is, the longer one says."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.of_item, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            tokens, item = x.transpose(0, 1), self.of_item(x.mean(1))
            item = item if join else torch.sigmoid(item)
            both = (item, self.layer(tokens)) if swapped else (self.layer(tokens), item)
            mixed = both[0] + both[1] if join else both[0] * both[1]
            return self.head(torch.relu(mixed)).mean(0)

    assert_explains(double(Beside()), randn(3, 5, 8))


@pytest.mark.parametrize("preset", ["conserving", "evidence", "attnlrp"])
def test_a_row_that_is_masked_altogether_and_blanked_receives_nothing(preset):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.score, self.head = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 3)

        def forward(self, x):
            x = self.embed(x)  # (batch, rows, places, features)
            there = torch.tensor([True, False, True])[:, None] & torch.ones(5, dtype=torch.bool)
            scores = self.score(x).squeeze(-1).masked_fill(~there, -torch.inf)
            weights = scores.softmax(-1).masked_fill(~there, 0.0)
            return self.head((weights[..., None] * x).sum((1, 2)))

    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    explainer, _ = assert_explains(
        Pooled().double().eval(), x, preset=preset, start="logit", absorbs=("bias", "constant", "padding", "stabilizer")
    )
    relevance = explainer(x).relevance
    assert not relevance[:, 1].any()
    assert relevance[:, [0, 2]].any(-1).all()
