"""Do the heads that relevance names matter more than others?

    python -m examples.evaluation.heads [--preset evidence] [--count 5]

For each prompt the heads with the most relevance for the next token are ablated, all at once: their results are
replaced by zeros. By how much the token's log-odds change is set beside the same number of heads drawn at random,
twenty times, and beside the heads with the least relevance. The model is SmolLM2-135M-Instruct (see
examples/smollm2.py); intervals are 95 % bootstrap intervals over prompts.
"""

import argparse
import random
import statistics
from pathlib import Path

import torch

import fxlrp
from examples.smollm2 import load
from fxlrp.evaluation import rank_correlation
from fxlrp.evaluation.tokens.measures import log_odds

PROMPTS = (Path(__file__).parent / "evidence" / "prompts.txt").read_text(encoding="utf-8").splitlines()
DRAWS = 20
PROBED = 4
"""On so many prompts each head is ablated alone."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evidence")
    parser.add_argument("--count", type=int, default=5)
    asked = parser.parse_args()
    model, tokenizer = load()
    lm = fxlrp.language_model(model, tokenizer, asked.preset)
    changes: dict[str, list[float]] = {"most relevance": [], "least relevance": [], "at random": []}
    correlations = []
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -1]
        target = int(logits.argmax())
        before = float(log_odds(logits, target))
        inside = lm.inside(prompt, max_new_tokens=1)

        def change(heads: list[str], ids: torch.Tensor = ids, target: int = target, before: float = before) -> float:
            with lm.ablated(heads), torch.no_grad():
                return float(log_odds(model(input_ids=ids).logits[:, -1], target)) - before

        ranked = [name for name, _ in inside.top_heads(10**6)]
        draw = random.Random(number)
        changes["most relevance"].append(abs(change(ranked[: asked.count])))
        changes["least relevance"].append(abs(change(ranked[-asked.count :])))
        drawn = [abs(change(draw.sample(ranked, asked.count))) for _ in range(DRAWS)]
        changes["at random"].append(statistics.fmean(drawn))
        if number < PROBED:
            alone = torch.tensor([-change([name]) for name in ranked])
            relevance = torch.tensor([value for _, value in inside.top_heads(10**6)])
            correlations.append(float(rank_correlation(relevance[None], alone[None])))
        print(f"{prompt} →{tokenizer.decode([target])}: {', '.join(ranked[: asked.count])}")
    print(f"\n{asked.count} heads of {len(ranked)}, preset {asked.preset}: mean change of the log-odds")
    for name, found in changes.items():
        draws = [statistics.fmean(random.Random(i).choices(found, k=len(found))) for i in range(2000)]
        low, *_, high = statistics.quantiles(draws, n=40)
        print(f"  {name}: {statistics.fmean(found):.2f} ({low:.2f} to {high:.2f})")
    print(f"  relevance and the fall when a head is ablated alone, rank correlation on {PROBED} prompts: "
          f"{statistics.fmean(correlations):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
