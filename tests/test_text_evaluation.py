"""Evaluations on passages: what is measured against sums whose parts are known, results, reports and mistakes."""

import re

import pytest
import text_models
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("polars")

import fxlrp
from fxlrp.errors import ConfigError, DataError, EvaluationError, WeightsError
from fxlrp.evaluation import evaluate, parse_config, read_results, write_report
from fxlrp.evaluation.tokens import Passage
from fxlrp.evaluation.tokens.heads import Ablation, measured_heads, relevance_of_heads
from fxlrp.evaluation.tokens.measures import (
    falls,
    found_truth,
    linear_correlation,
    log_odds,
    order_correlation,
    removal_area,
    scored,
)
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


def test_a_fall_in_a_series_is_what_all_channels_of_a_step_were_worth():
    content = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    passage = Passage({"x": content}, "x", measured=slice(1, None))

    def summed(content):
        return {"output": content.sum((1, 2))}

    assert falls(summed, passage, 0).tolist() == pytest.approx([22, 44])
    # What is left: most first 77, 33, 11; least first 77, 55, 11.
    assert removal_area(summed, passage, torch.tensor([1.0, 2.0]), 0)["output"] == pytest.approx(22 / 3)


def test_what_is_found_of_the_truth():
    truth = torch.tensor([False, True, False, False, True])
    found = found_truth(torch.tensor([0.1, -4.0, 0.9, 2.0, 1.0]), truth)
    assert found["first"] == 1  # by magnitude
    assert found["first_signed"] == 0
    assert found["all_first"] == 0  # the other one is third
    assert found["share"] == pytest.approx(5 / 8)
    assert found["precision"] == pytest.approx((1 + 2 / 3) / 2)
    best = found_truth(torch.tensor([0.0, 2.0, -3.0]), torch.tensor([False, True, True]))
    assert best == {"first": 1, "first_signed": 1, "all_first": 1, "share": 1, "precision": 1}


def test_relevance_of_zero_finds_nothing_and_no_truth_is_not_found():
    assert found_truth(torch.zeros(3), torch.tensor([False, False, True]))["share"] == 0
    assert found_truth(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == {}


def test_an_order_that_there_is_not_has_no_correlation():
    assert order_correlation(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])) is None
    assert linear_correlation(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])) is None
    assert order_correlation(torch.tensor([2.0, 3.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1)


def test_a_linear_correlation_is_pearsons():
    first, second = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert linear_correlation(first, second) == pytest.approx(float(torch.corrcoef(torch.stack([first, second]))[0, 1]))
    assert linear_correlation(-3 * first + 2, first) == pytest.approx(-1)


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
    assert "a number for each place" in next(row["reason"] for row in others if row["method"] == "too few")
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


# Passages -------------------------------------------------------------------------------------------

TABLE = {"model": {"spec": "python:text_models:table"}, "data": {"kind": "passages", "path": "text_models:rows"}}
SERIES = {"model": {"spec": "python:text_models:series"}, "data": {"kind": "passages", "path": "text_models:steps"}}
EXACT = {"preset": "epsilon", "start": "logit"}


def of_passages(folder, *, methods=None, **sections):
    methods = methods or {"epsilon": EXACT, "occlusion": {"kind": "occlusion"}, "random": {"kind": "random"}}
    metrics = {"target": "predicted", "checkpoints": ["head"]}
    return parse_config({"metrics": metrics, "methods": methods, "run": {"out": "out"}} | sections, folder)


def by_key(entries):
    return {each["key"]: each["value"] for each in entries}


@pytest.mark.usefixtures("evaluation_place")
@pytest.mark.parametrize("subject", [TABLE, SERIES], ids=["table", "series"])
def test_of_values_relevance_is_what_each_place_adds(tmp_path, subject):
    asked = of_passages(tmp_path, **subject)
    finished = evaluate(asked)
    assert (finished.failures, finished.unavailable) == (0, {})
    model = (text_models.table if subject is TABLE else text_models.series)().model
    passages = (text_models.rows if subject is TABLE else text_models.steps)()
    found = [row for row in rows(asked) if row["method"] == "epsilon"]
    for row, passage in zip(found, passages, strict=True):
        x = passage.content
        parts = (x.flatten(1) * model.head.weight[row["target"]].detach()).view(x.shape)
        assert row["values"] == pytest.approx(parts[0].reshape(x.shape[1], -1).sum(1).tolist(), rel=1e-4)  # ε is 1e-6
        assert (row["tokens"], row["answer"], row["label"]) == (None, None, passage.label)
        arrived = float(parts.abs().sum())
        assert by_key(row["magnitudes"]) == pytest.approx({"input": arrived, "head": arrived}, rel=1e-4)


@pytest.mark.usefixtures("evaluation_place")
def test_the_truth_is_set_beside_relevance(tmp_path):
    asked = of_passages(tmp_path, **TABLE)
    evaluate(asked)
    found = [by_key(row["truth"]) for row in rows(asked) if row["method"] == "epsilon"]
    assert (found[0]["first"], found[0]["all_first"], found[0]["precision"]) == (1, 1, 1)
    values = torch.tensor(next(row["values"] for row in rows(asked)[3:] if row["method"] == "epsilon")).abs()
    assert found[1]["share"] == pytest.approx(float(values[:-1].sum() / values.sum()))
    page = write_report(asked).read_text()
    assert "3 passages, of which the model gets 66.7 % right." in page
    assert "## Known truth" in page
    columns = r"method \| passages \| correlation \| linear \| area, log-odds \| .* \| bound, head"
    assert re.search(rf"^\| {columns} \|", page, re.MULTILINE)
    assert re.search(r"^\| epsilon \| 3 \| .* \| 1\.0 \| [\d.]+ \|$", page, re.MULTILINE)  # all of it arrives
    assert re.search(r"^\| random \| 3 \| .* \| – \| [\d.]+ \|$", page, re.MULTILINE)  # it distributes nothing


@pytest.mark.usefixtures("evaluation_place")
def test_several_subjects_are_measured_as_each_alone(tmp_path):
    subjects = {"a table": TABLE, "a series": SERIES | {"data": {"path": "text_models:steps"}}}
    both = {"out": "both", "against": "random"}
    asked = of_passages(tmp_path, subjects=subjects, data={"kind": "passages"}, run=both)
    assert evaluate(asked).images == 5
    together = rows(asked)
    assert sorted({row["index"] for row in together}) == [0, 1, 2, 3, 4]
    for name, subject in (("a table", TABLE), ("a series", SERIES)):
        alone = of_passages(tmp_path, **subject, run={"out": name})
        evaluate(alone)
        own = [row for row in together if row["subject"] == name]
        for row, expected in zip(own, rows(alone), strict=True):
            differs = {"index": expected["index"], "subject": expected["subject"]}
            assert row | differs == expected
    page = write_report(asked).read_text()
    assert page.startswith("# python:text_models:table on passages, python:text_models:series on passages\n")
    headings = [line for line in page.splitlines() if line.startswith("##")]
    assert headings == ["## a table", "### Known truth", "### Against random", "## a series", "### Against random"]
    table = (asked.out / "report" / "results.csv").read_text().splitlines()
    assert table[0].startswith("subject,method,")
    assert [line.split(",")[0] for line in table[1:]] == ["a table"] * 3 + ["a series"] * 3


@pytest.mark.usefixtures("evaluation_place")
def test_one_subject_may_have_a_name(tmp_path):
    asked = of_passages(tmp_path, subjects={"a table": TABLE})
    assert evaluate(asked).failures == 0
    assert {row["subject"] for row in rows(asked)} == {"a table"}
    assert "## a table" in write_report(asked).read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({**TABLE, "metrics": {}}, "of passages what the model predicts is explained: write metrics.target"),
        ({**TABLE, "metrics": {"target": "predicted", "cell": 3}}, r"metrics\.cell is for images, and .* passages"),
        ({"subjects": {}}, r"such as \[subjects\.NAME\]"),
        ({"subjects": {"": TABLE}}, r"such as \[subjects\.NAME\]"),
        ({"subjects": {"a": TABLE | {"run": {}}}}, r"\[subjects\.a\] has no 'run'"),
        ({"subjects": {"a": {"data": TABLE["data"]}}}, r"\[subjects\.a\.model\] lacks 'spec'"),
        ({"subjects": {"a": TABLE | {"data": {"kind": "passage"}}}}, r"a\.data\.kind = 'passage'.*did you mean"),
        ({"subjects": {"a": TABLE, "b": TABLE | {"data": {"kind": "npz", "path": "x"}}}}, "several subjects are for"),
    ],
)
def test_a_mistake_in_subjects_is_told(tmp_path, given, told):
    with pytest.raises(ConfigError, match=told):
        of_passages(tmp_path, **given)


@pytest.mark.usefixtures("evaluation_place")
def test_what_are_no_passages_is_told(tmp_path):
    with pytest.raises(DataError, match="must give a list of Passages"):
        of_passages(tmp_path, **TABLE | {"data": {"kind": "passages", "path": "text_models:no_passages"}}).samples()
    with pytest.raises(EvaluationError, match=r"truth must be torch.bool \(3,\).* not torch.int64 \(3,\)"):
        Passage({"x": torch.zeros(1, 3)}, "x", truth=torch.ones(3, dtype=torch.int64))
    asked = config(tmp_path, model="table")
    assert evaluate(asked).failures == 3
    assert "the model reads no texts" in rows(asked)[0]["reason"]


# Heads ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("evaluation_place")
def test_the_heads_that_relevance_names_are_ablated(tmp_path):
    methods = {"exact": EXACT, "worth": {"kind": "occlusion"}}
    asked = config(tmp_path, model="heads", methods=methods, lines=LINES, metrics={"heads": 1})
    assert evaluate(asked).failures == 0
    found = [by_key(row["heads"]) for row in rows(asked) if row["method"] == "exact"]
    for each in found:
        assert each["heads"] == 8
        assert each["most"] > each["random"] > each["least"]
        assert each["order"] > 0.8  # relevance is of the logit, the falls are those of the log-odds
    assert all(row["heads"] == [] for row in rows(asked) if row["method"] == "worth")
    page = write_report(asked).read_text()
    assert "1 of the 8 heads were ablated at once" in page
    section = page.split("## Heads")[1]
    assert re.search(r"^\| exact \| \d\.\d\d .* \|$", section, re.MULTILINE)
    assert "worth" not in section


def test_the_relevance_of_a_head_is_what_is_missed_without_it():
    subject, passage = text_models.heads(), text_models.read("the cat sat")
    model = subject.model.eval().requires_grad_(False)
    explainer = fxlrp.compile(model, **EXACT)
    explainer(**passage.inputs, target=1)
    found = relevance_of_heads(explainer, model, passage, 1)
    ablation = Ablation(model, lambda content: {"logit": model(content)[:, 1]}, passage)
    falls = {head: ablation.fall(found.units, [head]) for head in found.values}
    assert found.values == pytest.approx(falls, rel=1e-3)  # ε is 1e-6
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_change_without_heads_is_that_of_the_model_with_zeros():
    worth = {"L0H0": 3.0, "L0H1": -5.0, "L1H0": 1.0, "L1H1": 0.5}
    found = measured_heads(worth, lambda heads: sum(worth[head] for head in heads), 1, seed=0)
    assert (found["most"], found["least"], found["order"], found["heads"]) == (5, 0.5, pytest.approx(1), 4)
    assert 0.5 < found["random"] < 5
    with pytest.raises(EvaluationError, match=r"metrics\.heads = 3: the model has 4 heads; give at most half"):
        measured_heads(worth, lambda heads: 0.0, 3, seed=0)


@pytest.mark.usefixtures("evaluation_place")
def test_heads_are_told_of_models_that_say_how_many(tmp_path):
    methods = {"evidence": METHODS["evidence"], "worth": METHODS["worth"]}
    finished = evaluate(config(tmp_path, metrics={"heads": 1}, methods=methods))
    assert list(finished.unavailable) == ["evidence"]
    assert "heads are told of models of transformers" in finished.unavailable["evidence"]


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
