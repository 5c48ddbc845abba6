"""The example that sets explanations of a language model beside known truth."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("captum")

from examples.evaluation import known_truth, known_truth_model, token_methods
from examples.evaluation.known_truth import figures, interval
from examples.evaluation.known_truth_model import BLANK, NUMBER, TASKS, WORDS, sequences, text, untrained
from examples.evaluation.token_methods import (
    Question,
    Scored,
    gradient_times_input,
    integrated_gradients,
    methods,
    rolled_out,
    rollout,
    telling,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads take longer over small matrices than one where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def words(ids):
    return [WORDS[number] for number in ids.tolist()]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    model, tokenizer = untrained()
    return model.eval(), tokenizer


@pytest.fixture
def question():
    drawn = sequences("recall", 1, torch.Generator().manual_seed(0))
    answer = int(drawn.answers[0])
    return Question(text(drawn.prompts[0]), WORDS[answer], drawn.prompts, answer)


class Additive(nn.Module):
    """A language model whose logits are sums over tokens of a linear map of their embeddings."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5).double(), nn.Linear(5, 7, bias=False).double()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        embeddings = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.head(embeddings).cumsum(1))


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_is_what_the_answer_follows_from(task):
    drawn = sequences(task, 50, torch.Generator().manual_seed(0))
    assert drawn.prompts.shape == (50, 18)
    for prompt, answer, truth in zip(drawn.prompts, drawn.answers, drawn.truth, strict=True):
        said, first, second = WORDS[answer], *(WORDS[prompt[place]] for place in truth)
        if task == "sum":
            assert [word for word in words(prompt) if word.endswith("!")] == [first, second]
            assert said == str((int(first[0]) + int(second[0])) % 10)
        else:
            assert (first, second) == (words(prompt)[-1], said)
            assert words(prompt)[:-1].count(first) == 1
            assert truth[1] == truth[0] + 1


@pytest.mark.parametrize("task", TASKS)
def test_every_label_follows_from_the_context(task):
    drawn = sequences(task, 50, torch.Generator().manual_seed(0))
    for ids, labels in zip(drawn.ids, drawn.labels, strict=True):
        asked = (labels >= 0).nonzero().flatten().tolist()
        assert asked[0] == 17
        for place in asked:
            query = words(ids)[place]
            if task != "sum":
                assert WORDS[labels[place]] == words(ids)[words(ids)[1:17].index(query) + 2]


def test_what_rests_on_a_blank_is_not_asked():
    drawn = sequences("recall", 200, torch.Generator().manual_seed(0), blanks=0.5)
    blank = (drawn.ids.gather(1, drawn.truth) == NUMBER[BLANK]).any(1)
    assert blank.any()
    assert (drawn.answers[blank] == -100).all()
    assert (drawn.answers[~blank] >= 0).all()


def test_the_tokenizer_reads_what_was_written(llama):
    for task in TASKS:
        prompt = sequences(task, 1, torch.Generator().manual_seed(0)).prompts
        assert llama[1](text(prompt[0]), return_tensors="pt")["input_ids"].tolist() == prompt.tolist()


def test_figures_of_an_order():
    found = figures(torch.tensor([0.1, -4.0, 0.9, 2.0, 1.0]), torch.tensor([1, 4]))
    assert found.named == 1  # by magnitude
    assert found.signed == 0
    assert found.both == 0  # the other one is third
    assert figures(torch.tensor([0.0, 2.0, -3.0]), torch.tensor([1, 2])).both == 1
    assert float(found.share) == pytest.approx(5 / 8)
    assert float(found.precision) == pytest.approx((1 + 2 / 3) / 2)


def test_an_interval_holds_the_mean():
    values = torch.arange(20.0)
    mean, low, high = interval(values)
    assert low < mean == 9.5 < high


def test_rows_of_rollout_sum_to_one(llama, question):
    flow = rolled_out([torch.rand(3, 6, 6).tril().softmax(-1) for _ in range(2)])
    torch.testing.assert_close(flow.sum(1), torch.ones(6))
    told = telling(llama[0])
    found = rollout(told, question.ids)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert (found > 0).all()
    assert llama[0].config._attn_implementation == "sdpa"  # not changed
    assert told.lm_head.weight is llama[0].lm_head.weight


def test_on_an_additive_model_gradients_and_occlusion_give_each_token_its_part():
    torch.manual_seed(0)
    model, asked = Additive(), Question("", "", torch.tensor([[3, 1, 4]]), 2)
    scored = Scored(model, "logit")
    parts = model.head(model.embed(asked.ids))[0, :, 2].detach()
    torch.testing.assert_close(gradient_times_input(scored, asked), parts)
    torch.testing.assert_close(integrated_gradients(scored, asked, None, 4), parts.float())
    blank = model.head(model.embed(torch.tensor(6)))[2].detach()
    torch.testing.assert_close(integrated_gradients(scored, asked, 6, 4), (parts - blank).float())


def test_every_method_gives_each_token_a_number(llama, question):
    model, tokenizer = llama
    for name, method in methods(model, tokenizer, NUMBER[BLANK], start="logit", steps=2).items():
        found = method(question)
        assert found.shape == (18,), name
        assert found.isfinite().all(), name


def test_it_runs_with_little_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["known_truth", "--training", "10", "--count", "2"])
    monkeypatch.setattr(token_methods, "PRESETS", ("evidence",))
    monkeypatch.setattr(known_truth_model, "BATCH", 12)
    monkeypatch.setattr(known_truth, "UNSEEN", 200)
    monkeypatch.setattr(known_truth, "BLANKED", 10)
    known_truth.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"[\d.]+% of 200 unseen sequences answered rightly", out)) == 3
    assert re.search(r"^  evidence .* precision [\d.]+ ", out, re.M)
    assert (tmp_path / "fxlrp" / "known-truth-10" / "model.safetensors").exists()
