"""Do explanations name what an answer is known to rest on?

    python -m examples.evaluation.known_truth [--count 200] [--start log_odds]

A small Llama learns tasks whose answers rest on two tokens of the prompt by the rule that made it (see
known_truth_model.py): within three minutes on one core, and once, since its weights are kept in the user's cache. On
sequences that it has not seen and answers rightly, each method says how much every token of the prompt matters.

The query, the last token of each prompt, is left out: where it stands is no secret. Of the other seventeen, figures are
given with 95 % bootstrap intervals over sequences:

- *named*: how often the token with the largest magnitude is one of the two; *named, signed*: that with the most for it;
- *both*: how often the two have the largest magnitudes of all;
- *share*: what part of all magnitudes lies on the two;
- *precision*: average precision of the two in the order of magnitudes: 1 where both come first.
"""

import argparse
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from examples.evaluation.known_truth_model import (
    BLANK,
    NUMBER,
    STEPS,
    TASKS,
    WORDS,
    Sequences,
    accuracy,
    load,
    sequences,
    text,
)  # fmt: skip
from examples.evaluation.token_methods import STARTS, Question, methods

UNSEEN, BLANKED, IG_STEPS = 2000, 200, 64
"""On so many sequences of each task accuracy is measured, and that with blanks; steps of integrated gradients."""


class Figures(NamedTuple):
    """How well relevance finds the truth, 0 to 1, of one sequence or of several."""

    named: Tensor
    signed: Tensor
    both: Tensor
    share: Tensor
    precision: Tensor


def figures(relevance: Tensor, truth: Tensor) -> Figures:
    """Of a sequence.

    Args:
        relevance: (tokens,), without the query.
        truth: (tokens of the truth,), where these are.
    """
    true = torch.zeros(len(relevance), dtype=torch.bool)
    true[truth] = True
    size = relevance.abs()
    found = true[size.argsort(descending=True)].float()
    hits = found.cumsum(0) / torch.arange(1, len(found) + 1)
    share = size[true].sum() / size.sum().clamp_min(1e-30)
    first = found[: len(truth)]
    return Figures(first[0], true[relevance.argmax()].float(), first.prod(), share, (hits * found).sum() / found.sum())


def interval(values: Tensor, draws: int = 2000) -> tuple[float, float, float]:
    """The mean of values, and its 95 % bootstrap interval."""
    chosen = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[chosen].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(values.mean()), low, high


def held(model: Any, drawn: Sequences) -> tuple[float, float]:
    """How often an answer stays with a blank in place of a token beside the truth, and of one of the truth."""
    drawn = Sequences(*(part[:BLANKED] for part in drawn))
    prompts, truth = drawn.prompts, torch.zeros(drawn.prompts.shape, dtype=torch.bool).scatter(1, drawn.truth, True)
    stays = torch.empty(truth.shape)
    for place in range(prompts.shape[1]):
        replaced = prompts.clone()
        replaced[:, place] = NUMBER[BLANK]
        with torch.no_grad():
            stays[:, place] = model(input_ids=replaced).logits[:, -1].argmax(1).eq(drawn.answers).float()
    beside = ~truth
    beside[:, [0, -1]] = False  # the task and the query decide on the answer in all
    return float(stays[beside].mean()), float(stays[truth].mean())


def questions(model: Any, drawn: Sequences) -> list[tuple[Question, Tensor]]:
    """Those that the model answers rightly, each with where its truth is."""
    with torch.no_grad():
        right = model(input_ids=drawn.prompts).logits[:, -1].argmax(1) == drawn.answers
    return [
        (Question(text(ids), WORDS[int(answer)], ids[None], int(answer)), truth)
        for ids, answer, truth in zip(drawn.prompts[right], drawn.answers[right], drawn.truth[right], strict=True)
    ]


def main() -> None:
    """Measure, and print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="rightly answered sequences of each task")
    parser.add_argument("--start", choices=STARTS, default="log_odds", help="what is explained")
    parser.add_argument("--training", type=int, default=STEPS, help="steps of training")
    asked = parser.parse_args()
    model, tokenizer = load(asked.training)
    generator = torch.Generator().manual_seed(1)  # training has 0
    unseen = {task: sequences(task, UNSEEN, generator) for task in TASKS}
    for task, drawn in unseen.items():
        beside, of_it = held(model, drawn)
        print(f"{task}: {accuracy(model, drawn):.1%} of {UNSEEN} unseen sequences answered rightly; with a blank in "
              f"place of a token beside the truth {beside:.1%}, of the truth {of_it:.1%}")  # fmt: skip
    compared = methods(model, tokenizer, NUMBER[BLANK], start=asked.start, steps=IG_STEPS)
    for task in TASKS:
        right = questions(model, unseen[task])[: asked.count]
        print(f"\n{task}, {len(right)} sequences, {asked.start}")
        print("  such as", *(f"{question.prompt} → {question.answer}" for question, _ in right[:1]))
        for name, method in compared.items() if right else ():
            began = time.perf_counter()
            found = [figures(method(question)[:-1], truth) for question, truth in right]
            told = [interval(torch.stack(values)) for values in zip(*found, strict=True)]
            seconds = (time.perf_counter() - began) / len(right)
            cells = "  ".join(f"{field} {mean:.3f} ({low:.3f} to {high:.3f})"
                              for field, (mean, low, high) in zip(Figures._fields, told, strict=True))  # fmt: skip
            print(f"  {name:33s} {cells}  {1000 * seconds:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
