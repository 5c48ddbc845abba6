"""Does relevance order the tokens of a prompt as taking them out does?

    python -m examples.evaluation.next_token

Each token of a prompt is replaced by the end-of-text token in turn, and the fall of the next token's log-odds is
measured. The rank correlation (Spearman) of these falls with the relevance of the tokens is the figure: its mean over
the prompts, with the half width of its 95 % interval. The model is SmolLM2-135M-Instruct (see examples/smollm2.py), on
which nothing was chosen.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fxlrp
from examples.smollm2 import load
from fxlrp.evaluation import rank_correlation

PROMPTS = [
    "The capital of France is Paris. The capital of Italy is",
    "One, two, three, four, five, six,",
    "Monday, Tuesday, Wednesday,",
    "The opposite of hot is",
    "She put on her coat because it was very",
    "The doctor told the patient to take the",
    "In the morning, the sun rises in the",
    "He opened the door with a",
    "The cat chased the mouse into the",
    "My favourite colour is blue, and my second favourite colour is",
    "Water freezes at zero degrees and boils at one hundred",
    "The children went to the beach to build a castle of",
    "Shakespeare wrote Romeo and",
    "A dog says woof, a cat says",
    "To make an omelette you have to break some",
    "The teacher wrote the answer on the",
    "After the long flight the pilot landed the",
    "The king and the",
    "We planted seeds in the garden and watered the",
    "The bank robbers stole all the",
]

PRESETS = ("conserving", "attnlrp", "cp_lrp", "evidence")


def falls(score: Callable[[Tensor], Tensor], ids: Tensor, blank: int) -> Tensor:
    """By how much replacing each token lowers the score: (tokens,)."""
    replaced = ids.expand(ids.shape[1], -1).clone()
    replaced.fill_diagonal_(blank)
    with torch.no_grad():
        result: Tensor = score(ids) - score(replaced)
    return result


def log_odds(logits: Tensor, target: int) -> Tensor:
    """Of a token against all others: (batch,)."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.logsumexp(1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model, tokenizer = load()
    prompts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            target = int(model(input_ids=ids).logits[:, -1].argmax())

        def score(batch: Tensor, target: int = target) -> Tensor:
            return log_odds(model(input_ids=batch).logits[:, -1], target)

        prompts.append((ids, target, falls(score, ids, tokenizer.eos_token_id)))
        print(f"{prompt} →{tokenizer.decode([target])}")
    for preset in PRESETS:
        start = "auto" if preset == "evidence" else "logit"
        explainer = fxlrp.compile(model, preset, start=start, output=last, verify="never")
        found, magnitudes = [], []
        for ids, target, expected in prompts:
            explanation = explainer(input_ids=ids, target=target)
            tokens = fxlrp.token_relevance(explanation.relevance)
            found.append(float(rank_correlation(tokens[:, None], expected[None, None])))
            magnitudes.append(float(tokens.abs().sum() / explanation.start.abs().sum()))
        interval = 1.96 * statistics.stdev(found) / len(found) ** 0.5
        print(f"{preset:12s} {statistics.mean(found):6.3f} ± {interval:.3f}   Σ|R| / start "
              f"{statistics.median(magnitudes):.2f}", flush=True)  # fmt: skip


def last(output: Any) -> Tensor:
    """The logits of the next token."""
    logits: Tensor = output.logits[:, -1]
    return logits


if __name__ == "__main__":
    main()
