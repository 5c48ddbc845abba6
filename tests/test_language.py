"""Language models: every token of an answer in one pass, by tokens, words, sentences and parts."""

import re

import pytest
import torch

import fxlrp
import fxlrp.language.text as texts
from fxlrp.errors import InputError, StartError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

PROMPT = "the capital of France is Paris. the capital of Italy is"
CORPUS = [
    PROMPT, "Rome is a city.", "Lyon is not the capital!", "what is the capital of Spain? it is Madrid, naturally.",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level():
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.add_special_tokens({"additional_special_tokens": special[1:]})
    wrapped.chat_template = TEMPLATE
    return wrapped


def word_pieces():
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    made.train_from_iterator(CORPUS, tokenizers.trainers.WordPieceTrainer(vocab_size=70, special_tokens=special))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        pad_token="[PAD]",
    )  # fmt: skip


def sentence_pieces():
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=80, special_tokens=list(special.values()), unk_token="<unk>"
    )
    made.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    tokenizer = byte_level()
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=len(tokenizer), initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval(), tokenizer


@pytest.fixture(scope="module")
def lm(decoder):
    return fxlrp.language_model(*decoder)


@pytest.fixture(scope="module")
def story(lm):
    return lm.explain(PROMPT, "Rome is it")


def test_every_token_of_an_answer_is_explained_as_if_alone(decoder, story):
    model, _ = decoder
    ids, first = story.text.ids[None], story.text.answer
    assert story.matrix.shape == (len(story.text.ids) - first, len(story.text.ids))
    for row in (0, len(story.rows) - 1):
        place = first + row
        explainer = fxlrp.compile(model, output=lambda out, place=place: out.logits[:, place - 1])
        alone = explainer(input_ids=ids, attention_mask=torch.ones_like(ids), target=int(ids[0, place]))
        expected = alone.by_input["input_ids"][0].sum(-1).float()
        torch.testing.assert_close(story.matrix[row], expected, atol=1e-5, rtol=1e-4)
        assert float(story.start[row]) == pytest.approx(float(alone.start), rel=1e-5)


def test_rows_add_up_and_rest_on_what_came_before(decoder, story):
    model, _ = decoder
    torch.testing.assert_close(story.matrix.sum(1) + story.absorbed, story.start)
    for row in range(len(story.rows)):
        assert not story.matrix[row, story.text.answer + row :].any()
    logits = model(story.text.ids[None]).logits[0].softmax(-1)
    tokens = story.text.ids[story.text.answer :]
    probabilities = logits[story.text.answer - 1 : -1].gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(story.probability, probabilities.float())
    assert sum(story.shares().values()) == pytest.approx(float(story.matrix.sum() / story.start.abs().sum()), rel=1e-5)


def test_an_answer_is_explained_against_another(decoder, lm):
    model, _ = decoder
    story = lm.explain(PROMPT, "Rome", against="Lyon")
    assert story.matrix.shape[0] == 1
    place = story.text.answer + next(
        row for row in range(9) if story.rows[0] == story.columns[story.text.answer + row]
    )
    rival = lm.explain(PROMPT, "Lyon").text.ids[place]
    logits = model(story.text.ids[None]).logits[0, place - 1]
    difference = logits[story.text.ids[place]] - logits[rival]
    assert float(story.start[0]) == pytest.approx(float(difference), rel=1e-4)
    with pytest.raises(InputError, match="begin alike"):
        lm.explain(PROMPT, "Rome", against="Rome")


def test_one_reading_serves_other_lengths(decoder):
    lm = fxlrp.language_model(*decoder)
    for prompt, answer in ((PROMPT, "Rome"), ("what is", "a city, naturally"), (PROMPT, "Madrid is not")):
        lm.explain(prompt, answer)
    assert lm.captured.reads == 1
    again = fxlrp.language_model(lm.captured, decoder[1], "attnlrp", start="logit")
    again.explain(PROMPT, "Rome")
    assert lm.captured.reads == 1


def test_what_the_model_says_is_its_greedy_answer(decoder, lm):
    model, tokenizer = decoder
    story = lm.explain(PROMPT, max_new_tokens=4)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    said = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    kept = [token for token in said.tolist() if token not in tokenizer.all_special_ids]
    assert story.text.ids[story.text.answer :].tolist() == kept
    assert story.answer == tokenizer.decode(kept)


@pytest.mark.parametrize("make", [byte_level, word_pieces, sentence_pieces])
def test_tokens_are_joined_to_the_words_of_the_text(make):
    tokenizer = make()
    text = texts.read(tokenizer, PROMPT, "Rome, naturally", None)
    units = texts.words(text.plain)
    held = texts.members(text.spans, units, text.text)
    assert [text.text[first:last] for first, last in units] == [*PROMPT.split(), "Rome,", "naturally"]
    assert all(held)
    tokens = [token for unit in held for token in unit]
    assert tokens == sorted(set(tokens))
    assert len(tokens) + text.parts.count("special") == len(text.ids)
    assert all(text.parts[token] == "answer" for token in held[-1])


def test_columns_are_joined_to_words_sentences_and_parts(story):
    words = story.words()
    assert words.columns[:3] == ("the", "capital", "of")
    torch.testing.assert_close(words.total().sum(), story.total().sum())
    assert story.sentences().columns[0] == "the capital of France is Paris."
    parts = story.spans(["capital of Italy", "France"])
    assert parts.matrix.shape == (len(story.rows), 2)
    with pytest.raises(InputError, match="'Berlin' is not in the text"):
        story.spans(["Berlin"])
    with pytest.raises(InputError, match="joined before"):
        words.sentences()


def test_a_chat_tells_its_template_apart(lm):
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what is the capital of Italy?"}]
    story = lm.explain(messages=messages, answer="Rome")
    of = dict(zip(story.columns, story.parts, strict=True))
    assert of["<|user|>"] == of["<|assistant|>"] == "special"
    assert "prompt" in story.parts
    assert story.parts[-1] == "answer"
    assert "what is the capital of Italy?" in story.sentences().columns
    assert set(story.shares()) <= {"prompt", "answer", "template", "special"}


def test_masks_are_filled():
    torch.manual_seed(0)
    tokenizer = word_pieces()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=len(tokenizer)
    )
    model = transformers.BertForMaskedLM(config).eval()
    story = fxlrp.language_model(model, tokenizer).explain("the capital of [MASK] is [MASK].")
    assert story.matrix.shape == (2, len(story.text.ids))
    logits = model(story.text.ids[None]).logits[0]
    places = (story.text.ids == tokenizer.mask_token_id).nonzero().flatten()
    torch.testing.assert_close(story.probability, logits[places].softmax(-1).amax(-1))
    with pytest.raises(InputError, match="no answer"):
        fxlrp.language_model(model, tokenizer).explain("the [MASK]", "capital")
    with pytest.raises(InputError, match=r"has no '\[MASK\]'"):
        fxlrp.language_model(model, tokenizer).explain("the capital")


def t5(tokenizer):
    sizes = {"num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer), "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=16, d_kv=8, d_ff=24, **sizes))


def bart(tokenizer):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": len(tokenizer)}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **widths))


@pytest.mark.parametrize("make", [t5, bart])
def test_an_answer_of_a_decoder_rests_on_what_its_encoder_read(make):
    torch.manual_seed(0)
    tokenizer = word_pieces()
    model = make(tokenizer).double().eval()
    lm = fxlrp.language_model(model, tokenizer)
    story = lm.explain(PROMPT, "Rome is it")
    torch.testing.assert_close(story.matrix.sum(1) + story.absorbed, story.start)
    assert story.matrix.shape[1] == len(story.text.ids)
    assert story.parts.count("answer") == len(story.rows)
    assert story.matrix[0, : story.text.answer - 1].any()  # the encoder's tokens
    assert not story.matrix[0, story.text.answer + 1 :].any()
    words = story.words()
    assert words.columns[-1] == "it"
    assert "paris." in "".join(words.columns).lower()
    first = story.text.answer - 1
    ids, given = story.text.ids[None, :first], story.text.ids[None, first:-1]
    logits = model(input_ids=ids, decoder_input_ids=given).logits[0]
    places = [place - story.text.answer for place, part in enumerate(story.parts) if part == "answer"]
    tokens = story.text.ids[story.text.answer :][places]
    expected = logits[places].softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(story.probability, expected.float())
    said = torch.cat([story.text.ids[story.text.answer :], torch.tensor([tokenizer.sep_token_id])])
    generated = texts.read_pair(tokenizer, PROMPT, said, 0)
    torch.testing.assert_close(generated.ids[first + 1 :], story.text.ids[story.text.answer :])
    assert [generated.text[a:b].strip() for a, b in generated.spans if a > len(PROMPT) and b > a][-1] == "it"
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="for causal models"):
        lm.explain(messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("make", [t5, pytest.param(bart, marks=pytest.mark.slow)])
def test_an_answer_of_a_decoder_is_explained_against_another(make):
    torch.manual_seed(0)
    tokenizer = word_pieces()
    model = make(tokenizer).double().eval()
    lm = fxlrp.language_model(model, tokenizer, preset="attnlrp")
    story = lm.explain(PROMPT, "it is Rome", against="it is Lyon")
    rival = lm.explain(PROMPT, "it is Lyon").text
    both = zip(story.text.ids, rival.ids, strict=False)
    first, row = story.text.answer - 1, next(place for place, (own, other) in enumerate(both) if own != other)
    assert story.rows == (tokenizer.decode([int(story.text.ids[row])]),)
    logits = model(input_ids=story.text.ids[None, :first], decoder_input_ids=story.text.ids[None, first:-1]).logits[0]
    difference = logits[row - first - 1, story.text.ids[row]] - logits[row - first - 1, rival.ids[row]]
    torch.testing.assert_close(story.start, difference[None].float().detach(), check_dtype=False)
    torch.testing.assert_close(story.matrix.sum(1) + story.absorbed, story.start)
    with pytest.raises(InputError, match="begin alike"):
        lm.explain(PROMPT, "it is", against="it is Rome")


def test_a_story_is_data_and_a_page(story, tmp_path, capsys):
    pytest.importorskip("polars")
    pytest.importorskip("matplotlib")
    frame = story.to_frame()
    assert len(frame) == story.matrix.numel()
    assert frame["relevance"].sum() == pytest.approx(float(story.matrix.sum()), abs=1e-5)
    page = story.save(tmp_path / "story.html").read_text(encoding="utf-8")
    assert page.count("<details") == len(story.rows)
    assert not re.search(r"https?://", page)
    story.save(tmp_path / "story.csv")
    with pytest.raises(InputError):
        story.save(tmp_path / "story.doc")
    assert repr(story).startswith("<Story of ' Rome is it'")
    pytest.importorskip("rich")
    story.words().show()
    assert "Italy" in capsys.readouterr().out


def test_what_goes_wrong_says_what_to_write(decoder, lm):
    model, tokenizer = decoder
    with pytest.raises(InputError, match="one of the two"):
        lm.explain()
    with pytest.raises(InputError, match="give both"):
        lm.explain(PROMPT, against="Lyon")
    with pytest.raises(InputError, match="no token"):
        lm.explain(PROMPT, "")
    with pytest.raises(InputError, match="a prompt is text"):
        lm.explain([PROMPT, PROMPT], "Rome")
    with pytest.raises(StartError, match="a token is explained by one of"):
        fxlrp.language_model(model, tokenizer, start="output")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    config = transformers.BertConfig(hidden_size=8, intermediate_size=8, **sizes)
    classifier = transformers.BertForSequenceClassification(config).eval()
    with pytest.raises(InputError, match="output='logits'"):
        fxlrp.language_model(classifier, tokenizer)
    with pytest.raises(InputError, match="of transformers"):
        fxlrp.language_model(torch.nn.Linear(2, 2).eval(), tokenizer)
    without = fxlrp.language_model(model, sentence_pieces())
    with pytest.raises(InputError, match="no chat template"):
        without.explain(messages=[{"role": "user", "content": "x"}])


def llava(size):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=size + 1)
    both = {"vision_config": vision, "text_config": text, "image_token_index": size, "image_token_id": size}
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**both))


def test_pictures_beside_tokens_are_explained_by_the_line_that_the_error_names(decoder):
    _, tokenizer = decoder
    torch.manual_seed(0)
    size = len(tokenizer)
    model = llava(size).double().eval()
    with pytest.raises(InputError, match=r"fxlrp\.compile\(model, batch=None, output=lambda out: out\.logits"):
        fxlrp.language_model(model, tokenizer)
    ids = torch.cat([torch.full((1, 4), size), torch.arange(5, 11)[None]], 1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28, dtype=torch.float64)}
    explainer = fxlrp.compile(model, batch=None, output=lambda out: out.logits[:, -1])
    given = {**inputs, "attention_mask": torch.ones_like(ids), "use_cache": False}
    explanation = explainer(**given)
    parts = explanation.by_input
    assert parts["input_ids"].any()
    assert parts["pixel_values"].any()
    assert not parts["input_ids"][0, :4].any()  # a picture stands in their place
    torch.testing.assert_close(explanation.output.logits, model(**given).logits)
    assert float(explainer.ledger(**given).error.abs().max()) < 1e-9


def test_caches_are_refused_before_anything_is_written_to_them(decoder):
    model, _ = decoder
    ids = torch.arange(5, 14)[None]
    explainer = fxlrp.compile(model, output=lambda out: out.logits[:, -1])
    with torch.no_grad():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    for call in (
        lambda: explainer(input_ids=ids[:, 5:], past_key_values=cache),
        lambda: fxlrp.compile(model, output="logits", example_inputs={"input_ids": ids, "past_key_values": cache}),
    ):
        with pytest.raises(InputError, match=r"past_key_values is a cache.*use_cache=False"):
            call()
    assert cache.get_seq_length() == 5
    assert explainer(input_ids=ids).start.shape == (1,)  # that the model returns a cache does not matter


def test_left_padding_receives_nothing(decoder):
    model, _ = decoder
    short = torch.arange(5, 9)
    ids = torch.stack([torch.arange(10, 17), torch.cat([torch.zeros(3, dtype=torch.long), short])])
    mask = (torch.arange(7) >= torch.tensor([[0], [3]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    explainer = fxlrp.compile(model, output=lambda out: out.logits[:, -1])
    padded = explainer(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    alone = explainer(input_ids=short[None], attention_mask=torch.ones(1, 4, dtype=torch.long),
                      position_ids=torch.arange(4)[None], use_cache=False)  # fmt: skip
    parts = [each.by_input["input_ids"].sum(-1) for each in (padded, alone)]
    torch.testing.assert_close(parts[0][1, 3:], parts[1][0])
    assert not parts[0][1, :3].any()
