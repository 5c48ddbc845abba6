"""Evaluations on texts: what is measured against sums whose parts are known, results, reports and mistakes."""

import re

import pytest
import text_models
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("polars")

from fxlrp.errors import ConfigError, DataError, EvaluationError, WeightsError
from fxlrp.evaluation import evaluate, parse_config, read_results, write_report
from fxlrp.evaluation.tokens import Passage
from fxlrp.evaluation.tokens.measures import falls, log_odds, order_correlation, removal_area, scored
from fxlrp.evaluation.tokens.subject import load_token_model

WORTH = torch.tensor([0.0, 5.0, 1.0, 3.0], dtype=torch.float64)
LINES = ["the cat sat on a mat", "a mat", "", "the cat"]
METHODS = {
    "evidence": {"preset": "evidence"},
    "epsilon": {"preset": "epsilon"},
    "worth": {"kind": "python", "function": "text_models:worth"},
    "turned": {"kind": "python", "function": "text_models:worth", "options": {"sign": -1.0}},
    "random": {"kind": "random"},
    "occlusion": {"kind": "occlusion"},
}


def config(folder, *, model="classifier", lines=LINES, methods=METHODS, metrics=None, **sections):
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    table = {
        "model": {"spec": f"python:text_models:{model}"},
        "data": {"kind": "text", "path": "texts.txt"},
        "metrics": {"target": "predicted", **(metrics or {})},
        "methods": methods,
        "run": {"out": "out"},
    }
    return parse_config(table | sections, folder)


def rows(config):
    return read_results(config).to_dicts()


# What is measured -----------------------------------------------------------------------------------


def summed(ids):
    return {"output": WORTH[ids].sum(1)}


def test_log_odds_are_those_of_the_softmax():
    logits = torch.randn(3, 7, dtype=torch.float64)
    probability = logits.softmax(1)[:, 2]
    torch.testing.assert_close(log_odds(logits, 2), (probability / (1 - probability)).log())


def test_a_fall_is_what_the_token_was_worth():
    passage = Passage({"input_ids": torch.tensor([[1, 3, 2, 1]])})
    assert falls(summed, passage, 0).tolist() == pytest.approx([5, 3, 1, 5])
    inner = Passage(passage.inputs, measured=slice(1, -1))
    assert falls(summed, inner, 0).tolist() == pytest.approx([3, 1])


def test_the_area_is_largest_for_the_true_order():
    passage = Passage({"input_ids": torch.tensor([[1, 3, 2]])})
    found = [removal_area(summed, passage, sign * torch.tensor([5.0, 3.0, 1.0]), 0)["output"] for sign in (1, -1)]
    # What is left: most first 9, 4, 1, 0; least first 9, 8, 5, 0.
    assert found == pytest.approx([2, -2])


def test_an_order_that_there_is_not_has_no_correlation():
    assert order_correlation(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])) is None
    assert order_correlation(torch.tensor([2.0, 3.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1)


def test_a_model_sees_no_more_texts_at_once_than_is_said():
    subject, seen = text_models.classifier(), []
    subject.model.register_forward_pre_hook(lambda module, given, named: seen.append(len(named["input_ids"])),
                                            with_kwargs=True)  # fmt: skip
    passage = subject.read("the cat sat on a mat")
    small, large = (scored(subject, passage, 1, size)(passage.ids.repeat(5, 1)) for size in (2, 5))
    assert seen == [2, 2, 1, 5]
    torch.testing.assert_close(small, large)


# Runs -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("evaluation_place")
@pytest.mark.parametrize("model", ["classifier", "scorer", "causal"])
def test_on_sums_relevance_orders_tokens_as_their_parts_do(tmp_path, model):
    asked = config(tmp_path, model=model)
    finished = evaluate(asked)
    assert (finished.images, finished.failures, finished.unavailable) == (3, 0, {})
    subject = getattr(text_models, model)()
    for row in rows(asked):
        assert row["status"] == "ok"
        passage = subject.read(row["text"])
        assert row["tokens"] == passage.ids[0].tolist()
        output = subject(passage.inputs)
        assert row["target"] == (None if model == "scorer" else int(output.argmax()))
        assert {each["key"] for each in row["areas"]} == ({"output"} if model == "scorer" else {"log_odds", "logit"})
        if model == "scorer" and row["method"] in ("epsilon", "worth"):  # log-odds are no sum of parts
            assert row["correlation"] == pytest.approx(1)
            assert row["areas"][0]["value"] > 0
        if model == "scorer" and row["method"] == "turned":
            assert row["correlation"] == pytest.approx(-1)
        if row["method"] == "occlusion":
            assert row["correlation"] == pytest.approx(1)
        if row["method"] == "evidence":
            assert sum(row["values"]) == pytest.approx(row["start"], rel=1e-6)
    if model == "causal":
        assert {row["answer"] for row in rows(asked)} <= set(text_models.WORDS)


@pytest.mark.usefixtures("evaluation_place")
def test_tokens_that_are_not_measured_do_not_count(tmp_path):
    asked = config(tmp_path, model="without_ends", lines=["the cat sat on a mat"])
    evaluate(asked)
    (occlusion,) = [row for row in rows(asked) if row["method"] == "occlusion"]
    assert (occlusion["values"][0], occlusion["values"][-1]) == (0, 0)
    assert occlusion["correlation"] == pytest.approx(1)


@pytest.mark.usefixtures("evaluation_place")
def test_a_run_goes_on_and_keeps_what_was_done(tmp_path):
    asked = config(tmp_path)
    evaluate(asked)
    before = rows(asked)
    (asked.out / "results.parquet" / "00000001.parquet").unlink()
    finished = evaluate(asked)
    assert finished.before == 2
    assert rows(asked) == before


@pytest.mark.usefixtures("evaluation_place")
def test_one_text_that_fails_does_not_cost_the_others(tmp_path):
    methods = {"worth": METHODS["worth"], "too few": {"kind": "python", "function": "text_models:too_few"}}
    asked = config(tmp_path, methods=methods, lines=[*LINES, "a dog"])  # a word that the model does not know
    assert evaluate(asked).failures == 4
    *others, dog, dog_too = rows(asked)
    assert {(row["method"], row["status"]) for row in others} == {("worth", "ok"), ("too few", "failed")}
    assert "a number for each token" in next(row["reason"] for row in others if row["method"] == "too few")
    assert "the text cannot be read: ValueError" in dog["reason"]
    assert dog_too["status"] == "failed"
    assert "## What failed" in write_report(asked).read_text()


@pytest.mark.usefixtures("evaluation_place")
def test_the_report_tells_all_methods(tmp_path):
    asked = config(tmp_path, run={"out": "out", "against": "evidence", "title": "Sums"})
    evaluate(asked)
    page = write_report(asked).read_text()
    assert page.startswith("# Sums\n")
    assert "how much log-odds falls" in page
    for name in METHODS:
        assert re.search(rf"^\| {name} \| 3 \| -?\d\.\d\d ", page, re.MULTILINE)
    assert "## Against evidence" in page
    assert "| the cat | `" in page  # what the model says
    table = (asked.out / "report" / "results.csv").read_text().splitlines()
    assert table[0].startswith("method,texts,failed,unavailable,correlation,correlation_low")
    assert len(table) == 1 + len(METHODS)


# Mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"metrics": {"grids": 3}}, r"metrics\.grids is for images, and \[data\] has texts"),
        ({"metrics": {"target": "label"}}, 'write metrics.target = "predicted"'),
        ({"run": {"maps": True}}, r"run\.maps is for images"),
        ({"methods": {"cam": {"kind": "grad_cam"}}}, "choose among fxlrp, occlusion, random, python"),
        ({"methods": {"a": {"levels": [8]}}}, r"\[methods.a\] has no 'levels'"),
        ({"methods": {"a": {"at": "embed"}}}, r"\[methods.a\] has no 'at'"),
        ({"methods": {"a": {"preset": "evidense"}}}, "did you mean 'evidence'"),
        ({"methods": {"a": {"preset": "python:text_models:worthless"}}}, "has no 'worthless'"),
        ({"methods": {"a": {"preset": "python:text_models:classifier"}}}, "returned TokenModel, not a Preset"),
    ],
)
@pytest.mark.usefixtures("evaluation_place")
def test_a_mistake_is_told_before_anything_runs(tmp_path, given, told):
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, **given)


def test_a_file_without_texts_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no text"):
        config(tmp_path, lines=["", "  "]).samples()
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe\xfa")
    asked = config(tmp_path)
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read as texts"):
        asked.samples()


@pytest.mark.usefixtures("evaluation_place")
def test_models_of_another_kind_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="for texts it must return a TokenModel"):
        load_token_model("python:text_models:no_token_model")
    with pytest.raises(WeightsError, match="for texts it is python:"):
        load_token_model("torchvision:resnet18")
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        load_token_model(f"transformers:{tmp_path}")
    subject = text_models.TokenModel(text_models.Named(3), text_models.read, 0)
    with pytest.raises(EvaluationError, match=r"logits \(batch, classes\) or scores"):
        subject(text_models.read("a cat").inputs)


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_a_folder_of_transformers_is_a_model_of_texts(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    if kind == "causal":
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(words), **sizes))
    else:
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        inner.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[
            ("[CLS]", 1), ("[SEP]", 2)])  # fmt: skip
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        labels = {"id2label": {0: "no", 1: "yes"}}
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes, **labels)
        )
    model.save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(tmp_path)
    subject = load_token_model(f"transformers:{tmp_path}")
    passage = subject.read("the cat sat")
    assert subject.blank == 3
    assert passage.ids[0][passage.measured].tolist() == [4, 5, 6]
    assert subject(passage.inputs).shape == (1, 2 if kind == "classifier" else len(words))
    assert subject.say(0) == ("no" if kind == "classifier" else "[UNK]")
