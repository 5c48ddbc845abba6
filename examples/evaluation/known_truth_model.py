"""A small Llama that learns, in minutes on one core, three tasks of which it is known what the answer rests on.

Every prompt has a task, sixteen tokens and a query, and is answered by one token:

- ``repeat``: letters, none of them twice, and one of them again. The answer is the letter behind it.
- ``recall``: eight letters with a digit behind each, and one of the letters again. The answer is its digit.
- ``sum``: digits, two of them marked. The answer is the sum of these two, modulo 10.

So the truth is, beside the query, the letter and what stands behind it, or the two marked digits.

``evidence/known_truth.toml`` sets methods beside it. How far the model keeps to it, and its training:

    python -m examples.evaluation.known_truth_model [--training 2000]
"""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxlrp.evaluation.tokens import Passage, TokenModel
from fxlrp.evaluation.tokens.subject import causal_model
from fxlrp.extras import require

LETTERS, DIGITS = [*"abcdefghijklmnopqrstuvwxyz"], [*"0123456789"]
MARKED = [f"{digit}!" for digit in DIGITS]
TASKS = ("repeat", "recall", "sum")
BLANK = "_"
WORDS = [BLANK, *TASKS, "=", *LETTERS, *DIGITS, *MARKED]
NUMBER = {word: number for number, word in enumerate(WORDS)}
CONTEXT, MORE = 16, 6
"""How many tokens stand between the task and the query, and how many stand behind the query in training."""
STEPS, BATCH, BLANKS = 2000, 128, 0.1
"""Of training: its steps, the sequences in each, and the share of tokens that are blank."""
UNSEEN, MEASURED = 2000, 200
"""Of each task: the sequences that training does not see, and how many of them are explained, or asked with blanks."""


class Sequences(NamedTuple):
    """Sequences of one task.

    Attributes:
        ids: (sequences, 2 + CONTEXT + MORE), the task, the context, the query, its answer, further queries and answers.
        labels: (sequences, 2 + CONTEXT + MORE), what each place is to be followed by; −100 where nothing is asked.
        truth: (sequences, 2), where in ``ids`` the tokens are that the answer to the first query rests on.
    """

    ids: Tensor
    labels: Tensor
    truth: Tensor

    @property
    def prompts(self) -> Tensor:
        """(sequences, 2 + CONTEXT), with the query as the last token."""
        return self.ids[:, : 2 + CONTEXT]

    @property
    def answers(self) -> Tensor:
        """(sequences,)."""
        return self.labels[:, 1 + CONTEXT]


def sequences(task: str, count: int, generator: torch.Generator, *, blanks: float = 0.0) -> Sequences:
    """Draw sequences of a task.

    Args:
        task: one of :data:`TASKS`.
        count: how many.
        generator: of random numbers.
        blanks: of tokens of the context, the share that is replaced by the blank; what rests on them is not asked.
    """

    def drawn(limit: int, places: int, *, twice: bool) -> Tensor:
        weights = torch.ones(count, limit)
        return torch.multinomial(weights, places, replacement=twice, generator=generator)

    letters, digits, marked = NUMBER["a"], NUMBER["0"], NUMBER["0!"]
    if task == "sum":
        values, truth = drawn(10, CONTEXT, twice=True), drawn(CONTEXT, 2, twice=False).sort(1).values
        context = (digits + values).scatter(1, truth, marked + values.gather(1, truth))
        asked, answers = torch.full((count, 1), NUMBER["="]), digits + values.gather(1, truth).sum(1, keepdim=True) % 10
        pairs = truth[:, None]
    elif task == "recall":
        keys = letters + drawn(26, CONTEXT // 2, twice=False)
        values = digits + drawn(10, CONTEXT // 2, twice=True)
        context = torch.stack([keys, values], 2).flatten(1)
        which = drawn(CONTEXT // 2, 1 + MORE // 2, twice=False)
        asked, answers = keys.gather(1, which), values.gather(1, which)
        pairs = torch.stack([2 * which, 2 * which + 1], 2)
    else:
        context = letters + drawn(26, CONTEXT, twice=False)
        first = drawn(CONTEXT - 1 - MORE, 1, twice=True)
        which = first + torch.arange(1 + MORE)
        asked, answers = context.gather(1, which), context.gather(1, which + 1)
        pairs = torch.stack([which, which + 1], 2)
    step = 1 if task == "repeat" else 2
    tail = torch.full((count, 1 + MORE), NUMBER[BLANK])
    labels = torch.full((count, 2 + CONTEXT + MORE), -100)
    if step == 2:
        tail[:, 1::2][:, : answers.shape[1]] = answers[:, : tail[:, 1::2].shape[1]]
    tail[:, ::step][:, : asked.shape[1]] = asked
    labels[:, 1 + CONTEXT :: step][:, : answers.shape[1]] = answers
    if blanks:
        gone = torch.rand(context.shape, generator=generator) < blanks
        context = context.masked_fill(gone, NUMBER[BLANK])
        lost = gone.gather(1, pairs.flatten(1)).view(pairs.shape).any(2)
        labels[:, 1 + CONTEXT :: step][:, : lost.shape[1]].masked_fill_(lost, -100)
    ids = torch.cat([torch.full((count, 1), NUMBER[task]), context, tail], 1)
    return Sequences(ids, labels, 1 + pairs[:, 0])


def text(ids: Tensor) -> str:
    """Tokens in words."""
    return " ".join(WORDS[number] for number in ids.tolist())


def untrained() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    transformers = require("transformers", "text")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(NUMBER, unk_token=BLANK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=BLANK, pad_token=BLANK)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=NUMBER[BLANK], eos_token_id=NUMBER[BLANK], pad_token_id=None,
        rope_theta=10000.0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), tokenizer


def train(model: Any, steps: int, *, seed: int = 0) -> None:
    """Train a model on all tasks, in equal parts."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    model.train()
    for step in range(steps):
        parts = [sequences(task, BATCH // len(TASKS), generator, blanks=BLANKS) for task in TASKS]
        logits = model(input_ids=torch.cat([part.ids for part in parts]), use_cache=False).logits
        losses = [F.cross_entropy(own.transpose(1, 2), part.labels)
                  for own, part in zip(logits.chunk(len(parts)), parts, strict=True)]  # fmt: skip
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 249:
            told = ", ".join(f"{task} {loss.item():.3f}" for task, loss in zip(TASKS, losses, strict=True))
            print(f"step {step + 1}: loss {told}", flush=True)
    model.eval()


def load(steps: int = STEPS) -> tuple[Any, Any]:
    """The trained model in eval mode, and its tokenizer; trained at the first call, and kept in the user's cache."""
    model, tokenizer = untrained()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fxlrp" / f"known-truth-{steps}"
    if not (cache / "model.safetensors").exists():
        torch.manual_seed(0)
        model, _ = untrained()
        train(model, steps)
        model.save_pretrained(cache)
    return type(model).from_pretrained(cache, local_files_only=True).eval(), tokenizer


def model() -> TokenModel:
    """The trained model for an evaluation."""
    return causal_model(*load())


def repeat() -> list[Passage]:
    return _passages("repeat")


def recall() -> list[Passage]:
    return _passages("recall")


def marked_sum() -> list[Passage]:
    return _passages("sum")


def unseen() -> dict[str, Sequences]:
    """Sequences of each task that training does not see."""
    generator = torch.Generator().manual_seed(1)  # training has 0
    return {task: sequences(task, UNSEEN, generator) for task in TASKS}


def _passages(task: str) -> list[Passage]:
    """Prompts for an evaluation. The query, their last token, is not measured: where it stands is no secret."""
    drawn = unseen()[task]
    asked = list(zip(drawn.prompts, _marked(drawn), drawn.answers.tolist(), strict=True))[:MEASURED]
    return [Passage({"input_ids": ids[None]}, measured=slice(-1), truth=truth, label=answer)
            for ids, truth, answer in asked]  # fmt: skip


def _marked(drawn: Sequences) -> Tensor:
    """(sequences, 2 + CONTEXT), whether the answer rests on a token of the prompt, the query left out."""
    return torch.zeros(drawn.prompts.shape, dtype=torch.bool).scatter(1, drawn.truth, True)


def accuracy(model: Any, drawn: Sequences) -> float:
    """The share of sequences that are answered rightly."""
    with torch.no_grad():
        said = model(input_ids=drawn.prompts).logits[:, -1].argmax(1)
    return float((said == drawn.answers).float().mean())


def held(model: Any, drawn: Sequences) -> tuple[float, float]:
    """How often an answer stays with a blank in place of a token beside the truth, and of one of the truth."""
    drawn = Sequences(*(part[:MEASURED] for part in drawn))
    prompts, truth = drawn.prompts, _marked(drawn)
    stays = torch.empty(truth.shape)
    for place in range(prompts.shape[1]):
        replaced = prompts.clone()
        replaced[:, place] = NUMBER[BLANK]
        with torch.no_grad():
            stays[:, place] = model(input_ids=replaced).logits[:, -1].argmax(1).eq(drawn.answers).float()
    beside = ~truth
    beside[:, [0, -1]] = False  # the task and the query decide on the answer in all
    return float(stays[beside].mean()), float(stays[truth].mean())


def main() -> None:
    """Train the model, and tell how far its answers rest on the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=STEPS, help="steps of training")
    model, _ = load(parser.parse_args().training)
    for task, drawn in unseen().items():
        beside, of_it = held(model, drawn)
        print(f"{task}: {accuracy(model, drawn):.1%} of {UNSEEN} unseen sequences answered rightly; with a blank in "
              f"place of a token beside the truth {beside:.1%}, of the truth {of_it:.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
