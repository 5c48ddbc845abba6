"""Does relevance order the words of a sentence as masking them does?

    python -m examples.evaluation.masking [--start output]

Each token of a sentence is replaced by ``[MASK]`` in turn, and the fall of the sentence's similarity to another one is
measured. The rank correlation (Spearman) of these falls with the relevance of the tokens is the figure: its mean over
the sentences, with the half width of its 95 % interval. The encoder is all-MiniLM-L6-v2 (extra ``text``). Rules are
chosen on every second pair (``--half 0``) and confirmed on the others.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fxlrp
from examples.sentence_similarity import Similarity, load, tokenize
from fxlrp.evaluation import rank_correlation

PAIRS = [
    ("A man is playing a guitar on the street.", "Someone performs music outdoors."),
    ("The bank raised interest rates last week.", "The lender increased the cost of borrowing."),
    ("Two dogs are running across a wide green field.", "Animals play on the grass."),
    ("She bought fresh bread from the small bakery.", "A woman went shopping for food."),
    ("The train to Berlin was delayed by heavy snow.", "Bad weather stopped the railway."),
    ("He repaired the broken window of the old house.", "The man fixed the glass."),
    ("Scientists discovered a new planet near a distant star.", "Astronomers found another world."),
    ("The children built a castle of sand at the beach.", "Kids are playing by the sea."),
    ("Our doctor advised him to stop smoking immediately.", "A physician warned about cigarettes."),
    ("The company dismissed hundreds of workers this year.", "Many employees lost their jobs."),
    ("A chef is cutting onions with a sharp knife.", "Someone prepares vegetables in a kitchen."),
    ("The river flooded the village after days of rain.", "Water covered the houses."),
    ("My brother plays chess every evening with his friends.", "He likes board games."),
    ("The museum shows paintings by young artists from Spain.", "An exhibition of art."),
    ("A small plane landed safely on the frozen lake.", "The pilot brought the aircraft down."),
    ("The teacher explained fractions to the tired students.", "A lesson in mathematics."),
    ("Thieves stole three bicycles from the garage at night.", "The bikes were taken by criminals."),
    ("The team won the final match in the last minute.", "A victory in football."),
    ("An old farmer sells apples and pears at the market.", "Fruit is sold by a man."),
    ("The software crashed because the disk was full.", "A computer program failed."),
    ("Researchers trained a large network on millions of images.", "A study of machine learning."),
    ("The bride wore a long white dress and red shoes.", "Clothes at a wedding."),
    ("Firefighters rescued a cat from the roof of a tower.", "An animal was saved."),
    ("The judge sentenced the banker to four years in prison.", "A court punished a man for crime."),
]

PRESETS: list[str | fxlrp.Preset] = ["conserving", "attnlrp", "cp_lrp", "evidence"]


def falls(model: Similarity, mask_token: int, ids: Tensor, mask: Tensor, other: tuple[Tensor, Tensor]) -> Tensor:
    """By how much masking each token lowers the similarity: (tokens,)."""
    count = ids.shape[1]
    masked = ids.expand(count, -1).clone()
    masked.fill_diagonal_(mask_token)
    others = [part.expand(count, -1) for part in other]
    with torch.no_grad():
        similarity = model(ids, mask, *other)
        result: Tensor = similarity - model(masked, mask.expand(count, -1), *others)
    return result


def correlations(model: Similarity, tokenizer: Any, relevance: Callable[..., Tensor], half: int) -> list[float]:
    """Per sentence, the rank correlation of its tokens' relevance with what masking them takes away."""
    found = []
    for first, second in PAIRS[half::2]:
        for pair in ((first, second), (second, first)):
            own, other = (tokenize(tokenizer, [sentence]) for sentence in pair)
            tokens = slice(1, -1)  # without [CLS] and [SEP]
            expected = falls(model, tokenizer.mask_token_id, *own, other)[None, None, tokens]
            values = relevance(*own, *other)[:, None, tokens]
            found.append(float(rank_correlation(values, expected)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default="output")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    options = parser.parse_args()
    model, tokenizer = load()
    print(f"{len(PAIRS[options.half :: 2])} pairs, both ways")
    for preset in PRESETS:
        explainer = fxlrp.compile(model, preset, start=options.start)
        magnitudes: list[float] = []

        def relevance(*inputs: Tensor, explainer: Any = explainer, seen: list[float] = magnitudes) -> Tensor:
            explanation = explainer(*inputs)
            tokens = fxlrp.token_relevance(explanation.by_input["input_ids"])
            seen.append(float(tokens.abs().sum() / explanation.start.abs().sum()))
            return tokens

        values = correlations(model, tokenizer, relevance, options.half)
        interval = 1.96 * statistics.stdev(values) / len(values) ** 0.5
        name = preset if isinstance(preset, str) else preset.name
        print(
            f"{name:12s} {statistics.mean(values):6.3f} ± {interval:.3f}   Σ|R| / start "
            f"{statistics.median(magnitudes):.2f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
