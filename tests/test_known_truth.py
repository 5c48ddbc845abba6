"""The model whose answers are known to rest on two tokens, and the methods of prompts that are set beside them."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("captum")

from examples.evaluation import known_truth_model
from examples.evaluation.known_truth_model import BLANK, NUMBER, TASKS, WORDS, sequences, text, untrained
from examples.evaluation.token_methods import (
    Scored,
    attention_rollout,
    gradient,
    gradient_times_input,
    integrated,
    integrated_gradients,
    rolled_out,
    rollout,
    telling,
)
from fxlrp.evaluation.tokens import Passage
from fxlrp.evaluation.tokens.subject import causal_model


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
def prompt():
    return sequences("recall", 1, torch.Generator().manual_seed(0)).prompts


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


def test_passages_hold_the_query_without_measuring_it_and_know_their_truth():
    for task, passages in (("repeat", known_truth_model.repeat()), ("sum", known_truth_model.marked_sum())):
        assert len(passages) == known_truth_model.MEASURED
        drawn = known_truth_model.unseen()[task]
        for passage, truth, answer in zip(passages, drawn.truth, drawn.answers, strict=False):
            assert passage.label == int(answer)
            assert passage.truth.nonzero().flatten().tolist() == sorted(truth.tolist())
            assert torch.arange(passage.places)[passage.measured].tolist() == list(range(passage.places - 1))


def test_rows_of_rollout_sum_to_one(llama, prompt):
    flow = rolled_out([torch.rand(3, 6, 6).tril().softmax(-1) for _ in range(2)])
    torch.testing.assert_close(flow.sum(1), torch.ones(6))
    told = telling(llama[0])
    found = rollout(told, prompt)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert (found > 0).all()
    assert llama[0].config._attn_implementation == "sdpa"  # not changed
    assert told.lm_head.weight is llama[0].lm_head.weight


def test_on_an_additive_model_gradients_and_occlusion_give_each_token_its_part():
    torch.manual_seed(0)
    model, ids = Additive(), torch.tensor([[3, 1, 4]])
    scored = Scored(model, "logit")
    parts = model.head(model.embed(ids))[0, :, 2].detach()
    torch.testing.assert_close(gradient_times_input(scored, ids, 2), parts)
    torch.testing.assert_close(integrated_gradients(scored, ids, 2, None, 4), parts.float())
    blank = model.head(model.embed(torch.tensor(6)))[2].detach()
    torch.testing.assert_close(integrated_gradients(scored, ids, 2, 6, 4), (parts - blank).float())


@pytest.mark.parametrize("made", [gradient, integrated, attention_rollout], ids=lambda made: made.__name__)
def test_every_method_gives_each_token_a_number(llama, prompt, made):
    found = made(causal_model(*llama))(Passage({"input_ids": prompt}), NUMBER["5"])
    assert found.shape == (18,)
    assert found.isfinite().all()


def test_it_trains_and_tells_how_far_answers_rest_on_the_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["known_truth_model", "--training", "10"])
    monkeypatch.setattr(known_truth_model, "BATCH", 12)
    monkeypatch.setattr(known_truth_model, "UNSEEN", 200)
    monkeypatch.setattr(known_truth_model, "MEASURED", 10)
    known_truth_model.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"[\d.]+% of 200 unseen sequences answered rightly", out)) == 3
    assert (tmp_path / "fxlrp" / "known-truth-10" / "model.safetensors").exists()
