"""Models of tokens: integers are looked up, masks carry no signal, and what does not fit is told."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_explains
from token_nets import Block, Fused
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, InputError

ENTRIES, WIDTH = 11, 8


class Text(nn.Module):
    """A text classifier; where ``guarded``, symbolic tracing cannot follow it and it is captured by export."""

    def __init__(self, guarded=False, *, positions=False):
        super().__init__()
        self.guarded = guarded
        self.words = nn.Embedding(ENTRIES, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(9, WIDTH)) if positions else None
        self.block, self.head = Block(Fused()), nn.Linear(WIDTH, 3)

    def forward(self, ids):
        assert not self.guarded or isinstance(ids, torch.Tensor)
        x = self.words(ids)
        if self.positions is not None:
            x = x + self.positions[: ids.shape[1]]
        return self.head(self.block(x).mean(1))


class Masked(nn.Module):
    """As encoders of sentences are: a mask beside the tokens, kinds of segments, and optional arguments."""

    def __init__(self):
        super().__init__()
        self.words, self.kinds = nn.Embedding(ENTRIES, WIDTH), nn.Embedding(2, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, *, scale=1.0):
        x = self.words(input_ids)
        if token_type_ids is not None:
            x = x + self.kinds(token_type_ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        hidden = None
        if attention_mask is not None:
            hidden = (1.0 - attention_mask[:, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        x = F.scaled_dot_product_attention(q, k, v, hidden) * scale
        if attention_mask is None:
            return self.head(x.mean(1))
        kept = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1))


def tokens(*shape, low=1):
    return torch.randint(low, ENTRIES, shape)


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
def test_relevance_of_tokens_is_that_of_their_embeddings(guarded):
    model, ids = Text(guarded).double().eval(), tokens(3, 6)
    explainer, _ = assert_explains(model, ids)
    assert explainer.capture == ("export" if guarded else "symbolic")
    assert explainer(ids).relevance.shape == (3, 6, WIDTH)
    # The same as from the embeddings on, as floating point input.
    rest = nn.Sequential(model.block, Mean(), model.head).eval()
    preset = fxlrp.Preset("z-plus everywhere")
    assert_close(fxlrp.compile(model, preset)(ids).relevance, fxlrp.compile(rest, preset)(model.words(ids)).relevance)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
def test_sequences_of_any_length_are_explained(guarded):
    model = Text(guarded, positions=True).double().eval()
    explainer = fxlrp.compile(model, "conserving")
    for length in (6, 4, 9, 1):
        ids = tokens(2, length)
        assert_close(explainer(ids).output, model(ids))
        assert_conserves(explainer, ids)


def test_the_first_layer_behind_a_lookup_is_not_one_whose_input_does_not_matter():
    model = nn.Sequential(nn.Embedding(ENTRIES, WIDTH), nn.Linear(WIDTH, 3), Mean()).eval()
    explainer = fxlrp.compile(model, "conserving")
    explainer(tokens(2, 4))
    assert [row.rule for row in explainer.ledger(tokens(2, 4)) if row.path == "1"] == ["ZPlus()"]


def test_lookups_of_one_input_stand_side_by_side():
    class TwoTables(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Embedding(ENTRIES, 4), nn.Embedding(ENTRIES, 3)
            self.head = nn.Linear(7, 3)

        def forward(self, ids):
            return self.head(torch.cat([self.first(ids), self.second(ids)], -1).mean(1))

    model, ids = TwoTables().double().eval(), tokens(2, 5)
    explainer, _ = assert_explains(model, ids)
    relevance = explainer(ids).relevance
    assert relevance.shape == (2, 5, 7)
    preset = fxlrp.Preset("z-plus everywhere")
    vectors = torch.cat([model.first(ids), model.second(ids)], -1)
    expected = fxlrp.compile(nn.Sequential(Mean(), model.head).eval(), preset)(vectors).relevance
    assert_close(fxlrp.compile(model, preset)(ids).relevance, expected)


def test_a_mask_of_integers_receives_zeros_and_hides_what_it_hides():
    model, ids = Masked().double().eval(), tokens(3, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    explainer, ledger = assert_explains(model, ids, mask)
    relevance = explainer(ids, mask).by_input
    assert relevance["attention_mask"].shape == mask.shape
    assert not relevance["attention_mask"].any()
    assert not (relevance["input_ids"].abs().sum(-1) * (1 - mask)).any()
    assert not [row.node for row in ledger if "mask" in row.node]


def test_padding_that_is_masked_changes_nothing():
    model = Masked().double().eval()
    explainer = fxlrp.compile(model, "conserving")
    ids = tokens(2, 4)
    padded = torch.cat([ids, tokens(2, 3)], 1)
    mask = (torch.arange(7) < 4).long().expand(2, 7)
    alone = explainer(ids, torch.ones_like(ids)).relevance[0]
    assert_close(explainer(padded, mask).relevance[0][:, :4], alone)


def test_inputs_by_name_in_any_order():
    model, ids, mask = Masked().double().eval(), tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    explainer = fxlrp.compile(model, "conserving")
    expected = explainer(ids, mask)
    for explanation in (
        explainer(input_ids=ids, attention_mask=mask),
        explainer(attention_mask=mask, input_ids=ids),
        explainer(ids, attention_mask=mask),
    ):
        assert set(explanation.by_input) == {"input_ids", "attention_mask"}
        assert_close(explanation.by_input["input_ids"], expected.by_input["input_ids"])
    assert_close(explainer.ledger(input_ids=ids, attention_mask=mask).relevance, expected.start)


def test_other_optional_inputs_are_another_program_of_the_same_explainer():
    model, ids, mask = Masked().double().eval(), tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, 3:] = 0
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, 6)
    explainer = fxlrp.compile(model, "conserving")
    calls = [{}, {"attention_mask": mask}, {"token_type_ids": kinds}, {"attention_mask": mask, "token_type_ids": kinds},
             {"scale": -2.0}]  # fmt: skip
    first = [explainer(ids, **call) for call in calls]
    for call, explanation in zip(calls, first, strict=True):
        assert_close(explanation.output, model(ids, **call))
        tensors = [name for name, value in call.items() if isinstance(value, torch.Tensor)]
        assert explanation.inputs == ("input_ids", *tensors)
    again = [explainer(ids, **call) for call in reversed(calls)]
    for before, after in zip(first, reversed(again), strict=True):
        assert torch.equal(before.by_input["input_ids"], after.by_input["input_ids"])


def test_two_lookups_of_two_inputs_share_relevance_as_a_sum_does():
    model, ids, kinds = Masked().double().eval(), tokens(2, 6), torch.randint(0, 2, (2, 6))
    explainer = fxlrp.compile(model, "conserving")
    relevance = explainer(ids, token_type_ids=kinds).by_input
    assert relevance["input_ids"].shape == relevance["token_type_ids"].shape == (2, 6, WIDTH)
    words, types = model.words(ids).abs(), model.kinds(kinds).abs()
    assert_close(relevance["input_ids"] * types, relevance["token_type_ids"] * words)


@pytest.mark.parametrize("guarded", [False, True], ids=["symbolic", "export"])
def test_wrong_tokens_are_refused_by_the_name_of_the_input(guarded):
    model = Text(guarded).double().eval()
    explainer = fxlrp.compile(model, "conserving", example_inputs=tokens(2, 6))
    explainer(tokens(2, 6))
    high, low = tokens(2, 6), tokens(2, 6)
    high[1, 2], low[0, 0] = ENTRIES, -1
    for ids, message in (
        (high, f"input ids holds {ENTRIES}, and its embedding has entries 0 to {ENTRIES - 1}"),
        (low, "input ids holds -1, and its embedding has entries 0 to"),
        (tokens(2, 6).double(), "input ids is float64; the model takes integers, such as tokens"),
        (tokens(2, 6)[:0], "input ids is empty"),
        (tokens(2, 6).tolist(), "must be a tensor, not list"),
    ):
        with pytest.raises(InputError, match=message):
            explainer(ids)
        with pytest.raises(InputError, match=message):
            explainer.ledger(ids)


def test_ids_and_mask_of_different_lengths_are_refused():
    model, ids, mask = Masked().double().eval(), tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    explainer = fxlrp.compile(model, "conserving", example_inputs={"input_ids": ids, "attention_mask": mask})
    with pytest.raises(InputError, match="input attention_mask is 5 long in axis 1, and input input_ids is 6"):
        explainer(ids, mask[:, :5])
    with pytest.raises(InputError, match="input attention_mask has a batch of 1, another one of 2"):
        explainer(ids, mask[:1])
    with pytest.raises(InputError, match=r"input attention_mask has shape \(2, 6, 1\), and the model was captured for"):
        explainer(ids, mask[..., None])


def test_a_length_that_the_model_fixes_is_told():
    class Fixed(nn.Module):
        """Adds as many position embeddings as it has."""

        def __init__(self):
            super().__init__()
            self.words, self.positions = nn.Embedding(ENTRIES, WIDTH), nn.Parameter(torch.randn(6, WIDTH))
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, ids):
            assert isinstance(ids, torch.Tensor)
            return self.head((self.words(ids) + self.positions).mean(1))

    explainer = fxlrp.compile(Fixed().eval(), "conserving")
    explainer(tokens(2, 6))
    with pytest.raises(InputError, match=r"input ids has shape \(2, 5\), and the model was captured for \(batch, 6\)"):
        explainer(tokens(2, 5))


def test_integers_of_any_width_are_tokens():
    model, ids = Text().double().eval(), tokens(2, 6)
    explainer = fxlrp.compile(model, "conserving")
    assert torch.equal(explainer(ids.int()).relevance, explainer(ids).relevance)


def test_a_bag_of_numbers_beside_tokens():
    class Both(nn.Module):
        """Tokens and floating point features in one model."""

        def __init__(self):
            super().__init__()
            self.words, self.features = nn.Embedding(ENTRIES, WIDTH), nn.Linear(4, WIDTH)
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, ids, features):
            return self.head(F.relu(self.words(ids).mean(1) + self.features(features)))

    model = Both().double().eval()
    explainer, _ = assert_explains(model, tokens(3, 5), torch.randn(3, 4, dtype=torch.float64))
    relevance = explainer(tokens(3, 5), torch.randn(3, 4, dtype=torch.float64)).relevance
    assert [r.shape for r in relevance] == [(3, 5, WIDTH), (3, 4)]


@pytest.mark.parametrize(("pads", "layer", "shape"), [
    ((1, 2), nn.Linear(9, 4), (3, 6)), ((1, 1, 1, 1), nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
    ((0, 0, 0, 0, 0, 1), nn.Conv2d(4, 2, 3), (2, 3, 6, 6)),
], ids=["features", "space", "channels"])  # fmt: skip
def test_an_axis_that_is_padded_first_is_as_long_as_it_may_be(pads, layer, shape):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(nn.functional.pad(x, pads)).flatten(1)

    explanation = fxlrp.compile(Padded().eval(), "conserving", start="output")(torch.randn(*shape))
    assert explanation.relevance.shape == shape


@pytest.mark.parametrize("unpacks", [False, True])
def test_entries_of_a_list_of_inputs_may_be_taken_by_number(unpacks):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, features):
            if unpacks:
                u, v = features
            else:
                u, v = features[0], features[1]
            return self.head((self.one(u) + self.two(v)).relu())

    explainer, features = fxlrp.compile(Listed().eval(), "conserving"), [torch.randn(3, 6), torch.randn(3, 3)]
    found = explainer(features, target=1)
    assert_close(found.start, sum(part.flatten(1).sum(1) for part in found.by_input.values()))


def test_an_item_of_the_batch_that_is_picked_is_refused():
    class Picks(nn.Module):
        def forward(self, x):
            return x[0] + x[1]

    with pytest.raises(CaptureError, match="picks one item of the batch"):
        fxlrp.compile(Picks().eval(), start="output")(torch.randn(3, 6))
