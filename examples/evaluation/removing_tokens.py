"""Does the next token fall with the tokens that relevance names first, and stay with those that it names last?

    python -m examples.evaluation.removing_tokens [--start logit]

The tokens of a prompt are replaced by the end-of-text token one after the other, once those with the most relevance
first and once those with the least. The area between the two curves, the mean over all steps, is the figure (Achtibat
et al., AttnLRP, ICML 2024): of the logit of the token that the model says, and of its log-odds against all others.
Means over the prompts have 95 % bootstrap intervals. The model is SmolLM2-135M-Instruct (see examples/smollm2.py), the
prompts are those of next_token.py.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from examples.evaluation.known_truth import interval
from examples.evaluation.next_token import PROMPTS, log_odds
from examples.evaluation.token_methods import STARTS, Question, methods
from examples.smollm2 import load

ORDERS = 6
"""So many random orders are drawn for each prompt."""


def removed(ids: Tensor, order: Tensor, blank: int) -> Tensor:
    """A prompt, (1, tokens), with none of its tokens replaced, one, two, … in this order, (tokens + 1, tokens)."""
    steps = torch.arange(len(order) + 1)[:, None]
    return ids.expand(len(steps), -1).masked_fill(order.argsort() < steps, blank)


def areas(logits: Callable[[Tensor], Tensor], asked: Question, relevance: Tensor, blank: int) -> Tensor:
    """(2,), the area between the curves of the logit, and of the log-odds.

    Args:
        logits: of the next token, (batch, vocabulary), from ids, (batch, tokens).
        asked: the prompt, and the token whose curves are drawn.
        relevance: (tokens,).
        blank: what tokens are replaced by.
    """
    orders = relevance.argsort(descending=False, stable=True), relevance.argsort(descending=True, stable=True)
    with torch.no_grad():
        found = logits(torch.cat([removed(asked.ids, order, blank) for order in orders]))
    curves = torch.stack([found[:, asked.target], log_odds(found, asked.target)])
    least, most = curves.chunk(2, dim=1)
    return (least - most).mean(1)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", choices=STARTS, default="log_odds", help="what is explained")
    parser.add_argument("--steps", type=int, default=16, help="of integrated gradients")
    asked = parser.parse_args()
    model, tokenizer = load()
    blank = tokenizer.eos_token_id

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return found

    questions = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            target = int(logits(ids).argmax())
        questions.append(Question(prompt, tokenizer.decode([target]), ids, target))
    print(f"{len(questions)} prompts, explained: {asked.start}; area between the curves of the logit, and the log-odds")
    for name, method in methods(model, tokenizer, blank, start=asked.start, steps=asked.steps).items():
        seconds, found, opens = 0.0, [], 0
        for question in questions:
            began = time.perf_counter()
            drawn = [method(question) for _ in range(ORDERS if name == "random" else 1)]
            seconds += time.perf_counter() - began
            opens += sum(int(relevance.argmax() == 0) for relevance in drawn)
            found.append(torch.stack([areas(logits, question, relevance, blank) for relevance in drawn]).mean(0))
        cells = "   ".join("{:6.2f} ({:.2f} to {:.2f})".format(*interval(values)) for values in torch.stack(found, 1))
        print(f"  {name:33s} {cells}   {seconds / len(questions):.1f} s   "
              f"the first token is first on {opens / len(drawn):.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
